"""The sync protocol of the kernel's IPVS, so that a pair may be a kernel and lvsha."""

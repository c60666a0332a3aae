"""Health checks: which real servers may be chosen."""

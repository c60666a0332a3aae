"""Failover: who holds the virtual addresses, and how they move (VRRP, RFC 9568)."""

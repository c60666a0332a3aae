"""Bytes and values: one protocol in each module, `parse` and `emit` as a pair."""

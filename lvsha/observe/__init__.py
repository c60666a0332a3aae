"""Watch a pair of directors from beside it, and change nothing."""

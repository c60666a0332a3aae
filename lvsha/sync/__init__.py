"""Tell other directors about connections, and learn of theirs."""

"""What trackers look at: the director's own tables, neighbours, programs, files, processes."""

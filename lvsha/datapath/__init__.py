"""The director: from a frame that came in to the frames that go out."""

"""Where a stream's messages are kept."""

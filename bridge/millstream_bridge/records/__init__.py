"""A record as a message and back: subjects, headers, frames. Pure."""

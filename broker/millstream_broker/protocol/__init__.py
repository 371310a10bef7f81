"""The client protocol without I/O: parser, encoder, headers, session, keep-alive, message core."""

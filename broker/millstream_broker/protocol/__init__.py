"""The client protocol: bytes in, operations and bytes out."""

"""Schemas beside the records: copied from a registry to a KV bucket, read back to decode values."""

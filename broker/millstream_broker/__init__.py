"""A single-node NATS server with JetStream, in Python."""

"""JetStream: streams, consumers and their API."""

"""The demo: a Kafka topic becomes ordered, self-balancing work on NATS."""

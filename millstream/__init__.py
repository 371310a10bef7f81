"""millstream: Kafka's partitions, per-key order and self-balancing groups on NATS."""

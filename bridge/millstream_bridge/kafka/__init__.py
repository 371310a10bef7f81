"""Kafka's side, behind the ports: the source, and librdkafka's mock cluster."""

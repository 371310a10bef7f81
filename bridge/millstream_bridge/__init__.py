"""Kafka topics into NATS subjects and back."""

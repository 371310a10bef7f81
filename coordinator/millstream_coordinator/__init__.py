"""Partitioned consumer groups over JetStream."""

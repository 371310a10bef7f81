"""The project: what Kafka holds, what is to become of it, the file that says so, and drift."""

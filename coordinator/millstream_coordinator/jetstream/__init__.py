"""The seam on a NATS server: the port and what it is made of."""

"""NATS' side: a plain connection, a stream made and checked, a stream read fast."""

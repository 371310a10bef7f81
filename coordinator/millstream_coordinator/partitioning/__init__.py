"""Which partition a key belongs to, how a subject carries both, and who publishes so."""

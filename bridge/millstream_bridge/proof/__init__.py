"""The proof that both sides hold the same."""

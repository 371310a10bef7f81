"""Accounts: who gets a message (`account`), and what JetStream sees of it (`port`)."""

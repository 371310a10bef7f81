"""Who gets a message: accounts, subscriptions, dispatch."""

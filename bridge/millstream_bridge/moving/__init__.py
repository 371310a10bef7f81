"""Moving records: the chain, checkpoint batches, sessions one after the other, the barrier."""

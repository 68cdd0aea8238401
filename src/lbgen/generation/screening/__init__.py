"""Which images may stay: checks of each, balance, near-duplicates over all shards."""

"""Which images are accepted: checks of each image, balance, near-duplicates across all shards."""

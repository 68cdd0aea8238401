"""Accepting or rejecting images: checks of each image, balance, near-duplicates across all shards."""

"""Workers: who draws the shards, and how a shard is made and written."""

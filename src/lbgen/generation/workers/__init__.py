"""Workers: which processes draw the shards, and how a shard is made and written."""

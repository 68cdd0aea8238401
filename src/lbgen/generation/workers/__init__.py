"""Workers: the processes that draw the shards, and how a shard is made and written."""

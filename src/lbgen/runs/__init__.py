"""How any run writes its files, excludes other runs, is interrupted, and records what made it."""

"""Reports of a generation run."""

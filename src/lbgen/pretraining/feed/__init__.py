"""From dataset folders to batches: which images there are, in which order they come, and how they are augmented."""

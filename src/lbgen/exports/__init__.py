"""Exports: the adapter of a run in the formats of other programs, and whole checkpoints with the adapter merged."""

"""Stage 2: draw a labelled dataset with an aligned generator."""

"""Stage 2: generate a labelled dataset with an aligned generator."""

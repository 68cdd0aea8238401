"""The downstream data sets: where they lie, how they are divided, and what is left out."""

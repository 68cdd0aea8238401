"""Localizing the category in a generated image, from the generator's own attention."""

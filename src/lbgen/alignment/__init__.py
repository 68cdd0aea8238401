"""Align a text-to-image generator with the language space of CLIP from category names alone (arXiv 2412.10831)."""

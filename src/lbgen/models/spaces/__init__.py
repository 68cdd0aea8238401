"""Semantic spaces of other packages than transformers, with the interface that transformers gives its own."""

"""Semantic spaces of other packages than transformers, and joint spaces."""

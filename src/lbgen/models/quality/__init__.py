"""Image quality scorers."""

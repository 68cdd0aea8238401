"""Measures of images, features and labels: pure functions, each defined once and used by every stage."""

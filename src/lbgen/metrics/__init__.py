"""Figures of images, features and labels: pure functions, each written once."""

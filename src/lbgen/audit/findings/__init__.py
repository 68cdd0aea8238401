"""Findings from the measures, for people and scripts: tests, the verdict in words, and one row per image."""

"""Comparing the files of a dataset with its plan and index, and deciding which models may be loaded for that."""

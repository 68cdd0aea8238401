"""Families of text-to-image generators, one file each."""

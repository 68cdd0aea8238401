"""Labelled image datasets on disk: each format in one file that writes and reads it."""

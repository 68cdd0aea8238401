"""Labelled image datasets on disk: every format, written and read."""

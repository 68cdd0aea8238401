"""Labelled image datasets on disk: one file per format, which writes and reads it.

A new dataset format is one file here, with a reader that open.py selects. If lbgen writes the format, the file also has
a layout, which is listed in layouts.py and in `format` of generation/config.py.
"""

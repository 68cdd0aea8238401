"""Labelled image datasets on disk: each format in one file that writes and reads it.

A new dataset format is one file here, with a reader that open.py chooses. If lbgen writes it, the file also has a
layout, which is listed in layouts.py and in `format` of generation/config.py.
"""

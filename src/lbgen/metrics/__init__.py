"""Measures of images, features and labels: pure functions, each defined once and used by every stage.

A new measure is a function here. For the audit it is also called in audit/measures.py and described in
audit/definitions.py.
"""

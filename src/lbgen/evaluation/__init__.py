"""Evaluating backbones: transfer to other data sets, and reliance on texture and context."""

"""Supervised pre-training of a backbone of timm on labelled images, generated or real."""

"""Bias figures of backbones, as defined by the published benchmarks."""

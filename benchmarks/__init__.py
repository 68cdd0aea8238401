"""Scripts that measure lbgen. Each runs alone, from the repository's root: `python benchmarks/speed/align_step.py`."""

"""`lbgen bias`: published benchmarks of shape, context, background and robustness."""

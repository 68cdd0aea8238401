"""What backbones are biased to: figures of the published benchmarks."""

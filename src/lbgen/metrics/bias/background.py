"""Reliance on backgrounds, from images whose backgrounds were exchanged (Xiao et al. 2020, arXiv 2006.09994)."""

from lbgen.metrics.intervals import Estimate, difference


def background_gap(mixed_same: Estimate, mixed_rand: Estimate) -> Estimate:
    """BG-Gap: accuracy on backgrounds of the same class minus accuracy on backgrounds of random classes, in [-1, 1].

    The two accuracies are treated as independent, because they are of different images. The images share objects, so
    the interval is conservative.
    """
    return difference(mixed_same, mixed_rand)

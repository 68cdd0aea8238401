"""Reliance on backgrounds, from images whose backgrounds were exchanged (Xiao et al. 2020, arXiv 2006.09994)."""

from lbgen.metrics.intervals import Estimate, difference


def background_gap(mixed_same: Estimate, mixed_rand: Estimate) -> Estimate:
    """BG-Gap: accuracy on backgrounds of the object's own class minus that on those of random classes, in [-1, 1].

    The two are of different images, and are taken as independent; they share objects, so the interval is too wide
    rather than too narrow.
    """
    return difference(mixed_same, mixed_rand)

"""Shape bias: does a classifier follow shape or texture if they conflict? (Geirhos et al. 2019, arXiv 1811.12231)"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbgen.metrics.intervals import Estimate, proportion


class ShapeBias(NamedTuple):
    conflict_images: int
    """Number of images whose shape and texture are of different categories; only these count."""
    shape_decisions: int
    texture_decisions: int
    shape_bias: Estimate
    """Share of shape decisions among all shape and texture decisions, in [0, 1]; NaN if there are none."""


def shape_bias(response: NDArray, shape: NDArray, texture: NDArray) -> ShapeBias:
    """Shape decisions / (shape decisions + texture decisions) over the images in conflict.

    All arrays are (N,), with comparable labels: the classifier's answer and the categories of shape and texture. The
    interval is Wilson's.
    """
    conflict = shape != texture
    by_shape = int(np.count_nonzero(conflict & (response == shape)))
    by_texture = int(np.count_nonzero(conflict & (response == texture)))
    return ShapeBias(int(np.count_nonzero(conflict)), by_shape, by_texture, proportion(by_shape, by_shape + by_texture))

"""Kernels of the independence term, one pair at a time."""

import math


def kernel(a, b, width):
    square = sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True))
    return sum(math.exp(-square / (2 * factor * width)) for factor in (0.25, 1, 4)) / 3

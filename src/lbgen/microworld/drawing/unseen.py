"""Ten additional objects that are in no corpus of the micro world, for testing features on unseen categories.

They are drawn like the objects in `shapes.py`, and no shipped model was trained on them.
"""

from __future__ import annotations

import numpy as np

from lbgen.microworld.drawing.shapes import Array, Parts, Shape, box, circle, ellipse, polygon, ring, union


def heart(x: Array, y: Array) -> Parts:
    lobes = union(circle(x, y, -0.42, -0.3, 0.48), circle(x, y, 0.42, -0.3, 0.48))
    return [(union(lobes, polygon(x, y, (-0.86, -0.1), (0.0, -0.35), (0.86, -0.1), (0.0, 0.95))), 1.0)]


def moon(x: Array, y: Array) -> Parts:
    return [(np.maximum(circle(x, y, 0, 0, 0.92), -circle(x, y, 0.45, -0.15, 0.75)), 1.0)]


def arrow(x: Array, y: Array) -> Parts:
    return [(union(polygon(x, y, (0, -0.95), (0.7, -0.1), (-0.7, -0.1)), box(x, y, 0, 0.4, 0.22, 0.55)), 1.0)]


def tree(x: Array, y: Array) -> Parts:
    layers = (
        polygon(x, y, (0, top), (width, top + 0.7), (-width, top + 0.7))
        for top, width in ((-1.0, 0.45), (-0.6, 0.62), (-0.2, 0.8))
    )
    return [(box(x, y, 0, 0.72, 0.13, 0.25), 0.3), (union(*layers), 1.0)]


def lamp(x: Array, y: Array) -> Parts:
    shade = polygon(x, y, (-0.35, -0.9), (0.35, -0.9), (0.75, -0.05), (-0.75, -0.05))
    return [(box(x, y, 0, 0.4, 0.07, 0.5), 0.3), (ellipse(x, y, 0, 0.85, 0.5, 0.13), 0.5), (shade, 1.0)]


def bell(x: Array, y: Array) -> Parts:
    dome = np.maximum(ellipse(x, y, 0, 0.4, 0.6, 1.2), y - np.float32(0.5))
    return [(circle(x, y, 0, 0.72, 0.18), 0.3), (dome, 1.0), (box(x, y, 0, 0.5, 0.8, 0.1), 0.6)]


def crown(x: Array, y: Array) -> Parts:
    points = (
        polygon(x, y, (tip, -0.75), (foot + 0.3, 0.4), (foot - 0.3, 0.4))
        for tip, foot in ((-0.9, -0.55), (0.0, 0.0), (0.9, 0.55))
    )
    jewels = union(*(circle(x, y, cx, 0.42, 0.12) for cx in (-0.5, 0.0, 0.5)))
    return [(union(box(x, y, 0, 0.42, 0.85, 0.25), *points), 1.0), (jewels, 1.8)]


def glasses(x: Array, y: Array) -> Parts:
    lenses = union(circle(x, y, -0.52, 0.0, 0.34), circle(x, y, 0.52, 0.0, 0.34))
    rims = union(ring(x, y, -0.52, 0.0, 0.4, 0.11), ring(x, y, 0.52, 0.0, 0.4, 0.11))
    return [(lenses, 1.8), (union(rims, box(x, y, 0, -0.05, 0.18, 0.09)), 1.0)]


def hammer(x: Array, y: Array) -> Parts:
    head = union(box(x, y, -0.1, -0.62, 0.6, 0.24), polygon(x, y, (0.4, -0.86), (0.85, -0.55), (0.4, -0.38)))
    return [(box(x, y, 0, 0.3, 0.12, 0.7), 0.5), (head, 1.0)]


def balloon(x: Array, y: Array) -> Parts:
    knot = polygon(x, y, (0, 0.38), (0.16, 0.6), (-0.16, 0.6))
    shine = ellipse(x, y, -0.22, -0.5, 0.14, 0.2)
    return [(box(x, y, 0, 0.75, 0.05, 0.25), 0.2), (union(ellipse(x, y, 0, -0.28, 0.62, 0.7), knot), 1.0), (shine, 1.8)]


UNSEEN: dict[str, Shape] = {
    "heart": heart, "moon": moon, "arrow": arrow, "tree": tree, "lamp": lamp,
    "bell": bell, "crown": crown, "glasses": glasses, "hammer": hammer, "balloon": balloon,
}  # fmt: skip

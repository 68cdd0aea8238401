"""The twelve objects, drawn as signed distance functions.

A shape is a function of local coordinates x, y (each (B, H, W); x to the right, y downwards, the object about two units
tall) that returns its parts from back to front: (signed distance in the same units, tone). The tone is the part's shade
of the object's colour: 1 unchanged and textured, below 1 darkened, above 1 lightened towards white.
The distance functions are well-known closed forms; polygons are intersections of half planes, exact on their border.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Parts = list[tuple[Array, float]]
Shape = Callable[[Array, Array], Parts]


def circle(x: Array, y: Array, cx: float, cy: float, radius: float) -> Array:
    return np.hypot(x - cx, y - cy) - np.float32(radius)


def ellipse(x: Array, y: Array, cx: float, cy: float, rx: float, ry: float) -> Array:
    return (np.hypot((x - cx) / rx, (y - cy) / ry) - 1) * np.float32(min(rx, ry))


def box(x: Array, y: Array, cx: float, cy: float, half_width: float, half_height: float) -> Array:
    return np.maximum(np.abs(x - cx) - half_width, np.abs(y - cy) - half_height)


def polygon(x: Array, y: Array, *corners: tuple[float, float]) -> Array:
    """A convex polygon; corners clockwise on screen (y downwards)."""
    distance = np.full_like(x, -np.inf)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = float(np.hypot(x1 - x0, y1 - y0))
        np.maximum(distance, (x - x0) * ((y1 - y0) / length) - (y - y0) * ((x1 - x0) / length), out=distance)
    return distance


def union(*distances: Array) -> Array:
    return np.minimum.reduce(distances)


def ring(x: Array, y: Array, cx: float, cy: float, radius: float, half_thickness: float) -> Array:
    return np.abs(np.hypot(x - cx, y - cy) - radius) - np.float32(half_thickness)


def fish(x: Array, y: Array) -> Parts:
    tail = polygon(x, y, (0.35, 0.0), (1.05, -0.55), (1.05, 0.55))
    fin = polygon(x, y, (-0.35, -0.35), (0.15, -0.8), (0.3, -0.3))
    return [(union(tail, fin), 0.65), (ellipse(x, y, -0.2, 0, 0.8, 0.48), 1.0), (circle(x, y, -0.6, -0.12, 0.12), 0.1)]


def cup(x: Array, y: Array) -> Parts:
    handle = ring(x, y, 0.55, 0.0, 0.35, 0.11)
    body = polygon(x, y, (-0.7, -0.65), (0.5, -0.65), (0.38, 0.75), (-0.58, 0.75))
    return [(handle, 0.65), (body, 1.0), (ellipse(x, y, -0.1, -0.65, 0.6, 0.16), 0.3)]


def mushroom(x: Array, y: Array) -> Parts:
    stem = polygon(x, y, (-0.2, -0.1), (0.2, -0.1), (0.3, 0.9), (-0.3, 0.9))
    cap = np.maximum(ellipse(x, y, 0, 0.05, 0.95, 0.95), y - np.float32(0.05))
    spots = union(circle(x, y, -0.42, -0.3, 0.14), circle(x, y, 0.1, -0.6, 0.15), circle(x, y, 0.5, -0.22, 0.13))
    return [(stem, 1.8), (cap, 1.0), (spots, 1.9)]


def star(x: Array, y: Array) -> Parts:
    sector = np.float32(2 * np.pi / 5)
    angle = np.arctan2(x, -y)
    folded = np.abs((angle + sector / 2) % sector - sector / 2)
    radius = np.hypot(x, y)
    px, py = radius * np.sin(folded), radius * np.cos(folded)  # the wedge between a tip and the next inner corner
    tip, inner = (0.0, 1.0), (0.42 * np.sin(sector / 2), 0.42 * np.cos(sector / 2))
    normal = np.array([tip[1] - inner[1], inner[0] - tip[0]])
    normal = (normal / np.linalg.norm(normal)).astype(np.float32)
    return [(((px - tip[0]) * normal[0] + (py - tip[1]) * normal[1]).astype(np.float32), 1.0)]


def house(x: Array, y: Array) -> Parts:
    walls = box(x, y, 0, 0.4, 0.7, 0.5)
    roof = polygon(x, y, (0, -0.95), (0.95, -0.08), (-0.95, -0.08))
    door, window = box(x, y, -0.25, 0.58, 0.17, 0.32), box(x, y, 0.33, 0.35, 0.17, 0.17)
    return [(walls, 1.0), (roof, 0.5), (door, 0.2), (window, 1.9)]


def key(x: Array, y: Array) -> Parts:
    shaft, teeth = (
        box(x, y, 0, 0.35, 0.15, 0.65),
        union(box(x, y, 0.33, 0.5, 0.28, 0.11), box(x, y, 0.3, 0.88, 0.26, 0.12)),
    )
    return [(union(ring(x, y, 0, -0.5, 0.36, 0.16), shaft, teeth), 1.0)]


def umbrella(x: Array, y: Array) -> Parts:
    shaft = union(box(x, y, 0, 0.35, 0.09, 0.55), np.maximum(ring(x, y, -0.2, 0.82, 0.2, 0.09), np.float32(0.82) - y))
    canopy = np.maximum(circle(x, y, 0, 0, 0.98), y)
    scallops = union(*(ellipse(x, y, cx, 0.0, 0.33, 0.2) for cx in (-0.65, 0.0, 0.65)))
    return [(shaft, 0.3), (np.maximum(canopy, -scallops), 1.0)]


def bottle(x: Array, y: Array) -> Parts:
    neck, body = box(x, y, 0, -0.6, 0.15, 0.35), union(box(x, y, 0, 0.38, 0.4, 0.58), ellipse(x, y, 0, -0.2, 0.4, 0.35))
    return [(union(neck, body), 1.0), (box(x, y, 0, -0.92, 0.19, 0.1), 0.3), (box(x, y, 0, 0.4, 0.4, 0.2), 1.8)]


def boat(x: Array, y: Array) -> Parts:
    hull = polygon(x, y, (-1.0, 0.4), (1.0, 0.4), (0.6, 0.9), (-0.6, 0.9))
    mast, sail = box(x, y, -0.05, -0.2, 0.05, 0.65), polygon(x, y, (0.08, -0.9), (0.8, 0.2), (0.08, 0.2))
    jib = polygon(x, y, (-0.18, -0.6), (-0.18, 0.2), (-0.7, 0.2))
    return [(mast, 0.2), (hull, 0.6), (sail, 1.0), (jib, 1.6)]


def flower(x: Array, y: Array) -> Parts:
    stem = union(box(x, y, 0, 0.5, 0.08, 0.48), ellipse(x, y, 0.28, 0.62, 0.28, 0.13))
    angles = np.arange(6) * np.pi / 3
    petals = union(*(circle(x, y, 0.38 * np.sin(a), -0.38 + 0.38 * np.cos(a), 0.24) for a in angles))
    return [(stem, 0.35), (petals, 1.0), (circle(x, y, 0, -0.38, 0.2), 1.9)]


def chair(x: Array, y: Array) -> Parts:
    back = union(box(x, y, -0.5, -0.3, 0.14, 0.65), box(x, y, -0.36, -0.8, 0.26, 0.15))
    seat = box(x, y, 0.0, 0.14, 0.66, 0.15)
    legs = union(box(x, y, -0.5, 0.62, 0.12, 0.38), box(x, y, 0.52, 0.62, 0.12, 0.38))
    return [(legs, 0.5), (back, 0.75), (seat, 1.0)]


def car(x: Array, y: Array) -> Parts:
    cabin = polygon(x, y, (-0.45, -0.45), (0.3, -0.45), (0.6, 0.05), (-0.65, 0.05))
    window = polygon(x, y, (-0.35, -0.33), (0.22, -0.33), (0.4, 0.0), (-0.48, 0.0))
    wheels = union(circle(x, y, -0.55, 0.45, 0.25), circle(x, y, 0.55, 0.45, 0.25))
    return [(cabin, 0.8), (window, 1.9), (box(x, y, 0, 0.2, 1.0, 0.25), 1.0), (wheels, 0.15)]


SHAPES: dict[str, Shape] = {
    "fish": fish, "cup": cup, "mushroom": mushroom, "star": star, "house": house, "key": key,
    "umbrella": umbrella, "bottle": bottle, "boat": boat, "flower": flower, "chair": chair, "car": car,
}  # fmt: skip

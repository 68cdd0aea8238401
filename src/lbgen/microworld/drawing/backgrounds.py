"""The six scenes, each a function of pixel coordinates and random numbers that returns RGB pictures.

u, v: (1, H, W), from 0 at the left or top to 1. n: how many pictures. Returns (n, H, W, 3) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def _colour(rng: np.random.Generator, n: int, rgb: tuple[float, float, float], jitter: float = 0.05) -> Array:
    """(n, 1, 1, 3): a colour near `rgb` for each picture.  jitter: standard deviation."""
    return np.clip(np.asarray(rgb) + rng.normal(0, jitter, (n, 1, 1, 3)), 0, 1).astype(np.float32)


def _uniform(rng: np.random.Generator, n: int, low: float, high: float) -> Array:
    """(n, 1, 1): a number in [low, high) for each picture."""
    return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)


def mix(below: NDArray[Any], above: NDArray[Any], share: NDArray[Any]) -> Array:
    """Blend pictures (n, H, W, 3): a share, (n, H, W) in [0, 1], of `above`, and the rest of `below`."""
    mixed = above - below
    mixed = mixed * share[..., None]
    mixed += below
    return mixed


def _edge(signed: Array) -> Array:
    """1 where `signed` (in picture heights) is positive, 0 where negative, with a transition of two pixels at 64x64."""
    return np.clip(signed * 32 + 0.5, 0, 1)


def grass(u: Array, v: Array, rng: np.random.Generator, n: int) -> Array:
    horizon = _uniform(rng, n, 0.3, 0.5) + 0.02 * np.sin(u * 9 + _uniform(rng, n, 0, 6))
    blades = 0.5 + 0.5 * np.sin(u * _uniform(rng, n, 30, 38) + np.sin(v * 24 + _uniform(rng, n, 0, 6)) * 2)
    field = mix(_colour(rng, n, (0.22, 0.5, 0.13)), _colour(rng, n, (0.42, 0.72, 0.25)), blades)
    return mix(_colour(rng, n, (0.6, 0.82, 0.97)), field, _edge(v - horizon))


def sea(u: Array, v: Array, rng: np.random.Generator, n: int) -> Array:
    horizon = _uniform(rng, n, 0.15, 0.35)
    swell = np.sin(v * _uniform(rng, n, 24, 32) + 1.5 * np.sin(u * _uniform(rng, n, 8, 14) + _uniform(rng, n, 0, 6)))
    water = mix(_colour(rng, n, (0.05, 0.25, 0.55)), _colour(rng, n, (0.2, 0.5, 0.8)), 0.5 + 0.5 * swell)
    return mix(_colour(rng, n, (0.85, 0.92, 0.98)), water, _edge(v - horizon))


def desert(u: Array, v: Array, rng: np.random.Generator, n: int) -> Array:
    far = _uniform(rng, n, 0.35, 0.5) + 0.07 * np.sin(u * _uniform(rng, n, 5, 8) + _uniform(rng, n, 0, 6))
    near = _uniform(rng, n, 0.65, 0.8) + 0.07 * np.sin(u * _uniform(rng, n, 4, 7) + _uniform(rng, n, 0, 6))
    sun = 0.09 - np.hypot(u - _uniform(rng, n, 0.1, 0.9), v - _uniform(rng, n, 0.08, 0.25))
    sky = mix(_colour(rng, n, (0.98, 0.8, 0.55)), _colour(rng, n, (1.0, 0.97, 0.8), 0.02), _edge(sun))
    dunes = mix(sky, _colour(rng, n, (0.9, 0.7, 0.38)), _edge(v - far))
    return mix(dunes, _colour(rng, n, (0.78, 0.55, 0.25)), _edge(v - near))


def snow(u: Array, v: Array, rng: np.random.Generator, n: int) -> Array:
    ground = _uniform(rng, n, 0.5, 0.7) + 0.04 * np.sin(u * _uniform(rng, n, 5, 9) + _uniform(rng, n, 0, 6))
    picture = mix(_colour(rng, n, (0.62, 0.68, 0.76)), _colour(rng, n, (0.95, 0.96, 0.99), 0.02), _edge(v - ground))
    flakes = np.zeros((n, v.shape[1], u.shape[2]), np.float32)
    for _ in range(9):
        distance = np.hypot(u - _uniform(rng, n, 0, 1), v - _uniform(rng, n, 0, 0.8))
        np.maximum(flakes, _edge(0.032 - distance), out=flakes)
    return mix(picture, np.ones((1, 1, 1, 3), np.float32), flakes)


def brick(u: Array, v: Array, rng: np.random.Generator, n: int) -> Array:
    rows = v * _uniform(rng, n, 5, 6) + _uniform(rng, n, 0, 1)
    columns = u * _uniform(rng, n, 2.5, 3) + _uniform(rng, n, 0, 1) + 0.5 * (np.floor(rows) % 2)
    shade = np.sin(np.floor(rows) * 12.9898 + np.floor(columns) * 78.233) * 0.5 + 0.5
    wall = mix(_colour(rng, n, (0.55, 0.22, 0.16)), _colour(rng, n, (0.72, 0.36, 0.26)), shade)
    joint = np.maximum(_edge((np.abs(rows % 1 - 0.5) - 0.42) * 0.15), _edge((np.abs(columns % 1 - 0.5) - 0.455) * 0.3))
    return mix(wall, _colour(rng, n, (0.78, 0.74, 0.68)), joint)


def forest(u: Array, v: Array, rng: np.random.Generator, n: int) -> Array:
    leaves = 0.5 + 0.5 * np.sin(u * 28 + _uniform(rng, n, 0, 6)) * np.sin(v * 24 + _uniform(rng, n, 0, 6))
    picture = mix(_colour(rng, n, (0.04, 0.2, 0.1)), _colour(rng, n, (0.1, 0.34, 0.16)), leaves)
    trunks = np.zeros((n, v.shape[1], u.shape[2]), np.float32)
    for slot in range(4):
        centre = (slot + _uniform(rng, n, 0.2, 0.8)) / 4 + 0.02 * np.sin(v * 6 + _uniform(rng, n, 0, 6))
        np.maximum(trunks, _edge(_uniform(rng, n, 0.02, 0.045) - np.abs(u - centre)), out=trunks)
    return mix(picture, _colour(rng, n, (0.35, 0.22, 0.12)), trunks)


BACKGROUNDS: dict[str, Callable[[Array, Array, np.random.Generator, int], Array]] = {
    "grass": grass, "sea": sea, "desert": desert, "snow": snow, "brick": brick, "forest": forest,
}  # fmt: skip

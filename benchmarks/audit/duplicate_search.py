"""Cost of the search for near-duplicates by the number of images: `python benchmarks/audit/duplicate_search.py`.

Pictures are smooth noise: random low frequencies, weaker the higher they are, as in photographs. All pairs are
compared, so that the last column applies to any number of images: N images take N * N / 2 times as long.
"""

import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.fft import idctn

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import flags_parser, heading, line
from lbgen.metrics.copies import originals, picture_hashes
from lbgen.metrics.near_duplicates import GRID

FREQUENCIES = 8
"""Number of frequencies of a picture in each direction."""
AT_ONCE = 10_000


def pictures(count: int, seed: int) -> NDArray[np.uint8]:
    """Pictures in the form of `copies.small_picture`, (count, 3072)."""
    coefficients = np.zeros((count, 3, GRID, GRID), np.float32)
    frequency = np.add.outer(np.arange(FREQUENCIES), np.arange(FREQUENCIES))
    drawn = np.random.default_rng(seed).normal(size=(count, 3, FREQUENCIES, FREQUENCIES))
    coefficients[:, :, :FREQUENCIES, :FREQUENCIES] = drawn / (1 + frequency)
    images = idctn(coefficients, axes=(2, 3), norm="ortho").reshape(count, -1)
    images -= images.mean(axis=1, keepdims=True)
    images *= 127 / np.abs(images).max(axis=1, keepdims=True)
    return (128 + images).round().astype(np.uint8)


def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[20_000, 40_000, 80_000])
    arguments = parser.parse_args(argv)
    print(heading())
    columns = ["images", "seconds", "CPU seconds", "peak GB", "CPU ns a pair"]
    print(line(columns), line(["---"] * len(columns)), sep="\n")
    for images in arguments.images:
        shown = np.empty((images, 3 * GRID**2), np.uint8)
        for start in range(0, images, AT_ONCE):
            shown[start : start + AT_ONCE] = pictures(min(AT_ONCE, images - start), start)
        hashes, mirrored = picture_hashes(shown)
        began, used = time.perf_counter(), time.process_time()
        originals(hashes, mirrored, shown.__getitem__)
        seconds, used = time.perf_counter() - began, time.process_time() - used
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        nanoseconds = 1e9 * used / (images * (images - 1) / 2)
        print(line([f"{images:,}", f"{seconds:.1f}", f"{used:.1f}", f"{peak:.1f}", f"{nanoseconds:.2f}"]), flush=True)
    print(f"\nload {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

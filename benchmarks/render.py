"""How fast the micro world is drawn, on one core: `python benchmarks/render.py`."""

import statistics
import time

import numpy as np

from lbgen.microworld.scenes import BALANCED, BIASED, render
from lbgen.microworld.world import CATEGORIES

IMAGES, REPEATS = 1200, 5

for name, world in (("biased", BIASED), ("balanced", BALANCED)):
    seconds = []
    for repeat in range(REPEATS + 1):
        began = time.perf_counter()
        render(np.arange(IMAGES) % len(CATEGORIES), repeat, world)
        seconds.append(time.perf_counter() - began)
    print(f"{name} corpus: {IMAGES / statistics.median(seconds[1:]):.0f} images/s")

"""How fast the micro world is drawn, on one core: `python benchmarks/speed/render.py`."""

import argparse
import statistics
import time

import numpy as np

from lbgen.microworld.scenes import BALANCED, BIASED, render
from lbgen.microworld.world import CATEGORIES


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1200, help="drawn at a time (default: 1200)")
    parser.add_argument("--repeats", type=int, default=5, help="measured, after one that is not (default: 5)")
    arguments = parser.parse_args(argv)
    for name, world in (("biased", BIASED), ("balanced", BALANCED)):
        seconds = []
        for repeat in range(1 + arguments.repeats):
            began = time.perf_counter()
            render(np.arange(arguments.images) % len(CATEGORIES), repeat, world)
            seconds.append(time.perf_counter() - began)
        print(f"{name} corpus: {arguments.images / statistics.median(seconds[1:]):.0f} images/s")


if __name__ == "__main__":
    main()

"""Cost of waiting threads of torch, alone and beside other work: `python benchmarks/speed/waiting.py`.

Two images of the micro world, 50 network calls, in processes that differ only in the environment of OpenMP. Threads
that wait for each other spin or sleep; spinning threads take time from everything else on the same cores.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import heading, markdown
from lbgen.runs.processes.waiting import SHORT_WAITING

OPENMP = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "torch's own": {},
    "sleeping at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    "lbgen's: a short spin": SHORT_WAITING,
    "one thread": {"OMP_NUM_THREADS": "1"},
}
DRAWING = """
import sys, time, torch
from lbgen.models.generator import load_generator
from lbgen.models.sampling import sample
generator = load_generator("microworld", scheduler="ddpm")
prompts = generator.encode(["a photo of a dog"] * 2)
noise = torch.zeros(2, *generator.latent_shape(64, 64))
for _ in range(1 + int(sys.argv[1])):
    began = time.perf_counter()
    with torch.no_grad():
        sample(generator, prompts, noise, steps=int(sys.argv[2]))
    print(time.perf_counter() - began)
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", type=int, default=6, help="processes that compute without an end")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args(argv)
    rows = []
    for beside in (0, args.beside):
        with busy(beside):
            rows += [row(name, beside, args) for name in ENVIRONMENTS]
    print(heading())
    print(markdown([["threads that wait", "processes beside", "seconds, median", "least", "most"], *rows]))


@contextmanager
def busy(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def row(name: str, beside: int, args: argparse.Namespace) -> list[str]:
    kept = {key: value for key, value in os.environ.items() if key not in OPENMP}
    command = [sys.executable, "-c", DRAWING, str(args.repeats), str(args.steps)]
    printed = subprocess.run(
        command, env=kept | ENVIRONMENTS[name], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.split()
    seconds = [float(each) for each in printed[1:]]
    return [name, str(beside), *(f"{value:.2f}" for value in (statistics.median(seconds), min(seconds), max(seconds)))]


if __name__ == "__main__":
    main()

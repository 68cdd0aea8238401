"""What lbgen itself costs at the size of ImageNet-21k: `python benchmarks/speed/fourteen_million.py --folder FOLDER`.

21,841 categories with made-up names, 650 images each, in tar shards of 10,000. **Nothing is drawn**: the generator is a
stub (benchmarks/stub_family.py) whose images are their noise, 16 x 16 pixels. The first shards are made by
`lbgen generate` with it. All other shards are stand-ins: their part of the index has the rows of the plan with random
hashes, and there is no file. What a step would do with the files of stand-ins is measured on the first shards alone.

The shares are of the time that the images take at 6 images a second and GPU.
"""

import hashlib
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import stub_family
from benchmarks.commands import run_lbgen
from benchmarks.measuring import flags_parser, heading, in_fresh_process, line
from lbgen.datasets import index
from lbgen.generation.card.describe import describe
from lbgen.generation.card.sidecars import sidecar_faults
from lbgen.generation.config import GenerateConfig
from lbgen.generation.damage import expected_of, shard_faults
from lbgen.generation.plan import Plan
from lbgen.generation.run import generate, plan_dataset
from lbgen.generation.screening.checks import Verdict
from lbgen.generation.screening.counts import RejectionCounts
from lbgen.generation.screening.deduplicate import deduplicate
from lbgen.generation.shard_rows import new_row
from lbgen.generation.strays import strays
from lbgen.generation.verify import distance_faults
from lbgen.runs.storage import open_store

ROOT = Path(__file__).parents[2]
RATE = 6
"""Images a second and GPU, our goal (benchmarks/RESULTS.md)."""
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


def made_up_names(categories: int) -> Iterator[str]:
    """Lines of a vocabulary: ids as those of WordNet, names of one to three made-up words, all different."""
    for number in range(categories):
        rng = np.random.default_rng(number)
        lengths = rng.integers(1, 4, size=rng.integers(1, 4))
        words = ["".join(rng.choice(SYLLABLES, size=1 + length)) for length in lengths]
        yield f"n{number + 1000000:08d} {' '.join(words)} {np.base_repr(number, 26)}"


# ---- measuring ----


@dataclass(frozen=True)
class Cost:
    step: str
    seconds: float
    peak: float
    """Bytes, of the largest process."""
    images: int
    """That the step was about."""
    note: str = ""

    def row(self) -> str:
        each = self.seconds / self.images
        cells = [f"{self.images:,}", f"{self.seconds:,.1f}", f"{1e6 * each:,.0f}", f"{each * RATE:.3%}"]
        return line([self.step, *cells, f"{self.peak / 1e6:,.0f}", self.note])


def cost(step: str, images: int, function: Callable[..., Any], *arguments: Any, note: str = "") -> Cost:
    """The step in a process of its own."""
    seconds, peak, found = in_fresh_process(_timed, function, arguments)
    measured = Cost(step, seconds, peak, images, f"{note}{found or ''}")
    print(measured.row(), flush=True)
    return measured


def _timed(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[float, int, Any]:
    began = time.perf_counter()
    found = function(*arguments)
    return time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, found


@contextmanager
def peak_of_others(name: str, every: float = 0.5) -> Iterator[list[int]]:
    """A list that gets the largest memory in bytes of each process whose command line contains `name`."""
    peaks: dict[int, int] = {}
    found: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(every):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    if name in (process / "cmdline").read_text():
                        status = (process / "status").read_text()
                        peaks[int(process.name)] = int(status.split("VmHWM:")[1].split()[0]) * 1024
                except (OSError, IndexError):
                    continue  # it has ended

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
        found += peaks.values()


# ---- the dataset ----


def plan_of(config: GenerateConfig) -> Plan:
    return plan_dataset(config, open_store(config.output))[0]


def write_stand_ins(config: GenerateConfig, first: int, last: int) -> None:
    """Parts of the index, and counts of rejections, for these shards, whose files do not exist."""
    plan, store = plan_of(config), open_store(config.output, f"stand-ins-{first}")
    for shard in range(first, last):
        rng = np.random.default_rng(shard)
        rows, counts = [], RejectionCounts()
        for image in plan.shard(config.split, shard):
            verdict = Verdict({}, (), (), rng.bytes(8).hex())
            rows.append(replace(new_row(image, shard, config, verdict), sha256=rng.bytes(32).hex()))
            counts.add_attempt(image.category.id, 0, ())
        store.write(index.rejections_name(config.split, shard), counts.to_bytes())
        hashes = {rows[0].file: hashlib.sha256(str(shard).encode()).hexdigest()}
        store.write(index.part_name(config.split, shard), index.index_bytes(rows, hashes))


def stand_ins(config: GenerateConfig, first: int, last: int) -> None:
    """The same in two processes."""
    middle = (first + last) // 2
    with get_context("fork").Pool(2) as pool:
        pool.starmap(write_stand_ins, [(config, first, middle), (config, middle, last)])


# ---- the steps ----


def first_shard(config: GenerateConfig) -> None:
    plan_of(config).shard(config.split, 0)


def every_shard(config: GenerateConfig) -> None:
    plan = plan_of(config)
    for shard in range(plan.shards(config.split)):
        plan.shard(config.split, shard)


def compare(config: GenerateConfig) -> None:
    store = open_store(config.output)
    deduplicate(store, config, *plan_dataset(config, store))


def write_card(config: GenerateConfig) -> None:
    describe(open_store(config.output), config, plan_of(config))


def verify_shards(config: GenerateConfig, shards: int) -> None:
    expected = expected_of(open_store(config.output), config, plan_of(config), None)
    for shard in range(shards):
        faults = list(shard_faults(expected, config.split, shard, set()))
        assert not faults, faults


def verify_rest(config: GenerateConfig) -> None:
    """What verify does once all shards are whole, besides the distances."""
    store, plan = open_store(config.output), plan_of(config)
    faults = list(sidecar_faults(store, config, plan))
    faults += strays(store, config, plan, {f"{index.shard_name(config.split, shard)}.tar" for shard in range(10**5)})
    assert not faults, faults


def verify_distances(config: GenerateConfig) -> None:
    assert not distance_faults(open_store(config.output), config, plan_of(config))


def ray_flags(config: GenerateConfig, workers: int) -> list[str]:
    names = ("vocabulary", "generator", "output", "images_per_category", "shard_size", "format", "batch_size", "steps")
    flags = [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(config, name)))]
    flags += ["--guidance-scale", "1", "--screen", "duplicate", "--screen-semantics", "microworld"]
    return [*flags, "--engine", "ray", "--workers", str(workers)]


def rehearse(config: GenerateConfig, real: int, workers: int) -> None:
    """real: shards that are made; all others are stand-ins.  workers: of Ray, 0 for none."""
    plan = plan_of(config)
    images, total, own = plan.images(config.split), plan.shards(config.split), plan.shard_images(config.split, 0)
    del plan

    # Plan and start; the first shard, which also writes the record of the dataset.
    cost("plan, and the images of its first shard", images, first_shard, config)
    cost("the images of every shard", images, every_shard, config)
    cost("a worker makes the first shard", own, generate, replace(config, shard_of=f"0/{total}"))

    # The other shards: first the stand-ins, then those that workers of Ray make.
    stand_ins(config, real, total)
    if workers:
        with peak_of_others("ray::RayWorker") as peaks:
            run_lbgen("generate", *ray_flags(config, workers))


def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("--categories", type=int, default=21_841)
    parser.add_argument("--images-per-category", type=int, default=650)
    parser.add_argument("--shard-size", type=int, default=10_000)
    parser.add_argument("--real", type=int, default=32, help="shards that are made with the stub")
    parser.add_argument("--workers", type=int, default=16, help="workers of Ray; 0 is none of this part")
    parser.add_argument("--folder", type=Path, help="an empty folder, kept; none is a temporary one")
    arguments = parser.parse_args(argv)
    print(heading())
    with TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        site = stub_family.install(folder / "site")
        sys.path.insert(0, str(site))
        os.environ["PYTHONPATH"] = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
        (folder / "names.txt").write_text("\n".join(made_up_names(arguments.categories)))
        config = GenerateConfig(
            output=str(folder / "data"),
            vocabulary=str(folder / "names.txt"),
            generator=stub_family.write_checkpoint(folder / "nothing"),
            images_per_category=arguments.images_per_category,
            shard_size=arguments.shard_size,
            format="webdataset",
            batch_size=64,
            steps=1,
            guidance_scale=1.0,
            screen=("duplicate",),
            screen_semantics="microworld",
        )
        rehearse(config, arguments.real, arguments.workers)


if __name__ == "__main__":
    main()

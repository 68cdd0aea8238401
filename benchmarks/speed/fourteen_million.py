"""The cost of lbgen itself at the size of ImageNet-21k: `python benchmarks/speed/fourteen_million.py`.

21,841 categories with made-up names. **Nothing is drawn**: the generator is a stub (benchmarks/stub_family.py) whose
images are their noise, 16 x 16 pixels. Times are CPU seconds; shares are relative to the time in which one GPU
generates the images of the step, at 6 images a second. Each step is a separate process; memory is the largest process,
with the libraries.

The whole dataset, 650 images a category in tar shards of 10,000, is planned, started and begun. Steps that read an
index use a tenth of it, 65 images a category: the first shards are made by `lbgen generate` in Ray's workers, the
others are stand-ins, whose part of the index has the rows of the plan with random hashes, and whose tar does not exist;
for the audit it is a link to one that was made.
"""

import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import stub_family
from benchmarks.commands import run_lbgen
from benchmarks.measuring import flags_parser, heading, in_fresh_process, line
from lbgen.datasets import index
from lbgen.generation.card.describe import describe
from lbgen.generation.card.sidecars import sidecar_faults
from lbgen.generation.config import GenerateConfig
from lbgen.generation.integrity import strays
from lbgen.generation.integrity.damage import expected_of, shard_faults
from lbgen.generation.integrity.shard_rows import planned_columns
from lbgen.generation.plan import Plan, PlannedImage
from lbgen.generation.run import generate, plan_dataset
from lbgen.generation.screening.counts import RejectionCounts
from lbgen.generation.screening.deduplicate import deduplicate
from lbgen.generation.verify import distance_faults
from lbgen.runs import outputs
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

TITLES = ["step", "images", "CPU s", "CPU us an image", "of the images' time", "MB"]


def report(step: str, images: int, seconds: float, peak: float) -> None:
    """A line of the table.  peak: bytes."""
    each = seconds / images
    cells = [f"{images:,}", f"{seconds:.2f}", f"{1e6 * each:.1f}", f"{each * RATE:.4%}", f"{peak / 1e6:,.0f}"]
    print(line([step, *cells]), flush=True)


def measure(step: str, images: int, function: Callable[..., Any], *arguments: Any) -> None:
    """The step in a process of its own."""
    report(step, images, *in_fresh_process(_timed, function, arguments))


def _timed(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[float, int]:
    began = time.process_time()
    function(*arguments)
    return time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


USAGE = """
import os, subprocess, sys
_, status, usage = os.wait4(subprocess.Popen(sys.argv[1:]).pid, 0)
print("USAGE", usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A small program that runs a command: a process starts with the peak memory of the one that starts it."""


def measure_command(step: str, images: int, *arguments: str) -> None:
    """`lbgen ARGUMENTS`, its start included."""
    command = [sys.executable, "-c", USAGE, sys.executable, "-m", "lbgen", *arguments, "--quiet"]
    shown = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    seconds, peak = shown.rpartition("USAGE ")[2].split()
    report(step, images, float(seconds), float(peak))


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


def write_stand_ins(config: GenerateConfig, first: int) -> None:
    """Parts of the index, and counts of rejections, for the shards from this one on, whose files do not exist."""
    plan, store = plan_of(config), open_store(config.output, "stand-ins")
    for shard in range(first, plan.shards(config.split)):
        planned, counts = plan.shard(config.split, shard), RejectionCounts()
        for image in planned:
            counts.add_attempt(image.category.id, 0, ())
        store.write(index.rejections_name(config.split, shard), counts.to_bytes())
        store.write(index.part_name(config.split, shard), part_of(planned, shard, config))


def part_of(planned: Sequence[PlannedImage], shard: int, config: GenerateConfig) -> bytes:
    """A part of the index with the rows of the plan, random hashes and no scores."""
    rng, count = np.random.default_rng(shard), len(planned)
    first = planned_columns(planned[0], shard, config, ())
    names = [image.category.name for image in planned]
    columns: dict[str, Any] = {name: [first[name]] * count for name in ("split", "shard", "seed", "file")}
    columns |= {"id": [image.category.id for image in planned], "name": names, "prompt": names}
    columns |= {"label": [image.label for image in planned], "key": [image.key for image in planned]}
    columns |= {name: [[]] * count for name in index.LISTS} | {"attempt": [0] * count}
    for name, size in (("sha256", 64), ("perceptual_hash", 16)):
        digits = rng.bytes(count * size // 2).hex()
        columns[name] = [digits[start : start + size] for start in range(0, count * size, size)]
    arrays = [pa.array(columns.get(field.name, [None] * count), field.type) for field in index.SCHEMA]
    hashes = {first["file"]: hashlib.sha256(str(shard).encode()).hexdigest()}
    schema = index.SCHEMA.with_metadata({index.CONTAINERS: json.dumps(hashes)})
    stream = io.BytesIO()
    pq.write_table(pa.table(arrays, schema=schema), stream)
    return stream.getvalue()


def link_tars(config: GenerateConfig, real: int) -> None:
    """Give the stand-ins, in turns, the files of the shards that were made."""
    for shard in range(real, plan_of(config).shards(config.split)):
        source, target = (f"{index.shard_name(config.split, each)}.tar" for each in (shard % real, shard))
        os.link(Path(config.output, source), Path(config.output, target))


def finished_folder(config: GenerateConfig) -> GenerateConfig:
    """A copy of a dataset's record, with empty files for its descriptions and for the parts of all shards."""
    data, copy = Path(config.output), Path(f"{config.output}-finished")
    (copy / "index").mkdir(parents=True)
    for name in (*outputs.DATASET_RECORD, strays.LABELS):
        shutil.copy(data / name, copy / name)
    for name in (strays.CARD, strays.SAMPLES, strays.INFO, strays.CROISSANT):
        (copy / name).touch()
    for shard in range(plan_of(config).shards(config.split)):
        (copy / index.part_name(config.split, shard)).touch()
    return replace(config, output=str(copy))


# ---- the steps ----


def first_shard(config: GenerateConfig) -> None:
    plan_of(config).shard(config.split, 0)


def last_shard(config: GenerateConfig) -> None:
    plan = plan_of(config)
    plan.shard(config.split, plan.shards(config.split) - 1)


def ten_shards(config: GenerateConfig) -> None:
    plan = plan_of(config)
    last = plan.shards(config.split) - 1
    for shard in np.linspace(0, last, 10).astype(int).tolist():
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


def verify_descriptions(config: GenerateConfig) -> None:
    """The part of `lbgen verify` that checks the files that describe a dataset, and files that are not its own."""
    store, plan = open_store(config.output), plan_of(config)
    known = strays.KnownFiles(config, plan)
    for shard in range(plan.shards(config.split)):
        known.add_shard(config.split, shard, {f"{index.shard_name(config.split, shard)}.tar"})
    faults = [*sidecar_faults(store, config, plan), *strays.strays(store, config, plan, known)]
    assert not faults, faults


def verify_distances(config: GenerateConfig) -> None:
    assert not distance_faults(open_store(config.output), config, plan_of(config))


def flags_of(config: GenerateConfig) -> list[str]:
    names = ("vocabulary", "generator", "output", "images_per_category", "shard_size", "format", "batch_size", "steps")
    flags = [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(config, name)))]
    return [*flags, "--guidance-scale", "1", "--screen", "duplicate", "--screen-semantics", "microworld"]


def in_ray(config: GenerateConfig, workers: int) -> None:
    """Make the missing shards with `lbgen generate --engine ray`, on the clock, and end the run."""
    command = [*flags_of(config), "--engine", "ray", "--workers", str(workers), "--quiet"]
    with peak_of_others("ray::RayWorker") as peaks:
        seconds, _ = run_lbgen("generate", *command)
    print(
        f"\nRay, {workers} workers: {seconds:.0f} s of the clock with the end of the run; {len(peaks)} processes of "
        f"{min(peaks) / 1e6:,.0f} to {max(peaks) / 1e6:,.0f} MB\n",
        flush=True,
    )


def rehearse_whole(config: GenerateConfig) -> None:
    plan = plan_of(config)
    images, shards, own = plan.images(config.split), plan.shards(config.split), plan.shard_images(config.split, 0)
    measure("plan, and its first shard", images, first_shard, config)
    measure("plan, and ten of its shards", 10 * own, ten_shards, config)
    measure("a worker makes the first shard", own, generate, replace(config, shard_of=f"0/{shards}"))
    finished = finished_folder(config)
    measure_command("start of a run with nothing left to do", images, "generate", *flags_of(finished))
    grown = replace(finished, images_per_category=config.images_per_category + 1)
    measure("growth by an image of each category: its plan and first shard", images, last_shard, grown)


def rehearse_index(config: GenerateConfig, real: int, workers: int, sample: float) -> None:
    """real: shards that are made, see the flag; all others are stand-ins.  workers: of Ray, 0 for one process."""
    plan = plan_of(config)
    images, shards, own = plan.images(config.split), plan.shards(config.split), plan.shard_images(config.split, 0)

    # The first shard, which writes the record too; the stand-ins; then the other shards, and the end of the run.
    in_fresh_process(generate, replace(config, shard_of=f"0/{shards}"))
    in_fresh_process(write_stand_ins, config, min(real, shards))
    if real > 1 and workers:
        in_ray(config, workers)
    elif real > 1:
        in_fresh_process(generate, config)

    # The parts of the end one by one: first those that read the index alone.
    measure("near-duplicates compared" + ", whose scores are there" * (real > 1), images, compare, config)
    measure("verify: distances of near-duplicates", images, verify_distances, config)
    measure("verify: every image of a shard", own, verify_shards, config, 1)
    if real == 1:
        return
    measure("card and the other descriptions", images, write_card, config)
    measure("verify: descriptions, files of others", images, verify_descriptions, config)
    measure_command("start of a run with nothing left to do", images, "generate", *flags_of(config))
    link_tars(config, min(real, shards))
    audit = ["audit", config.output, "--semantics", "microworld", "--permutations", "99"]
    audit += ["--output", f"{config.output}-audit", "--sample", str(sample)]
    measure_command(f"audit of {sample:.3g} of the images", images, *audit)


def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("--categories", type=int, default=21_841)
    parser.add_argument("--images-per-category", type=int, default=650)
    parser.add_argument("--shard-size", type=int, default=10_000)
    parser.add_argument("--index-alone", action="store_true", help="leave out the whole dataset")
    parser.add_argument("--indexed", type=int, default=65, help="images a category of the smaller dataset")
    parser.add_argument(
        "--real",
        type=int,
        default=17,
        help="shards of it that are made with the stub, 1 for "
        "what reads the index alone; the card looks for its pictures in the first ones",
    )
    parser.add_argument("--workers", type=int, default=16, help="workers of Ray; 0 makes these shards in one process")
    parser.add_argument("--sample", type=float, default=0.01, help="share of the images that is audited")
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
            writers=1,
            guidance_scale=1.0,
            screen=("duplicate",),
            screen_semantics="microworld",
        )
        print(line(TITLES), line(["---"] * len(TITLES)), sep="\n")
        if not arguments.index_alone:
            rehearse_whole(config)
        indexed = replace(config, output=str(folder / "indexed"), images_per_category=arguments.indexed)
        rehearse_index(indexed, arguments.real, arguments.workers, arguments.sample)


if __name__ == "__main__":
    main()

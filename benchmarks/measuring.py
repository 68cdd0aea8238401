"""How the benchmarks measure (each version in a process of its own: median time, peak memory) and print tables."""

import argparse
import os
import platform
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from typing import Any

import torch

from lbgen.configuration.flags import add_arguments
from lbgen.configuration.recipes import built_in_recipes, recipe_path, resolve
from lbgen.configuration.yaml_lines import read_yaml
from lbgen.generation.config import GenerateConfig

PRESETS = tuple(name for name in built_in_recipes() if name.startswith("fast-"))
"""The approximations of `lbgen generate`."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Measured:
    seconds: float
    """Median time of a call."""
    peak: int
    """Largest number of bytes held at once, weights included: by torch on a GPU, by the process beyond its imports on
    a CPU."""


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `function`, called in a process of its own.

    The process starts with the peak memory of this one: keep that small. On a CPU it is forked, so that the libraries
    are imported once; CUDA does not survive a fork.
    """
    context = get_context("spawn" if DEVICE == "cuda" else "fork")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def measured(repeats: int, prepare: Callable[..., Callable[[], object]], *arguments: Any) -> Measured:
    """Time `repeats` calls of what `prepare` returns, after one that does not count, in a fresh process."""
    return in_fresh_process(_measure, repeats, prepare, arguments)


def _measure(repeats: int, prepare: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]) -> Measured:
    before = _peak_memory()
    call = prepare(*arguments)
    seconds = [seconds_of(call) for _ in range(1 + repeats)]
    return Measured(statistics.median(seconds[1:]), _peak_memory() - before)


Version = tuple[Callable[..., Callable[[], object]], Any]
"""The function that prepares a call, and its argument."""


def by_turns(repeats: int, versions: dict[str, Version]) -> str:
    """A line of Markdown: CPU seconds of each version's call, in one fresh process in which they take turns.

    On a machine that does other work these can be compared, and times of the clock cannot.
    """
    seconds = in_fresh_process(_turns, repeats, versions)
    reference = next(iter(seconds.values()))
    cells = [f"{name} {value:.2f} ({reference / value:.2f} times as fast)" for name, value in seconds.items()]
    load = os.getloadavg()[0]
    return f"CPU seconds, median of {repeats} by turns, load {load:.1f}: {'; '.join(cells)}"


def _turns(repeats: int, versions: dict[str, Version]) -> dict[str, float]:
    calls = {name: prepare(argument) for name, (prepare, argument) in versions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 + repeats):
        for name, call in calls.items():
            began = time.process_time()
            call()
            seconds[name].append(time.process_time() - began)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def seconds_of(call: Callable[[], object]) -> float:
    """Wall time of one call, until the GPU has finished what it was given."""
    began = now()
    call()
    return now() - began


def now() -> float:
    """A clock in seconds, read when the GPU has finished what it was given."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak_memory() -> int:
    """Bytes; ru_maxrss counts KiB on Linux."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def matrix_ceiling() -> float:
    """TFLOP/s of this GPU on products of two 8192 x 8192 bf16 matrices: what no network can exceed."""
    matrix = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)

    def products() -> None:
        for _ in range(20):
            matrix @ matrix

    seconds_of(products)
    return 20 * 2 * 8192**3 / statistics.median(seconds_of(products) for _ in range(5)) / 1e12


def with_recipe(config: GenerateConfig, recipe: str) -> GenerateConfig:
    """A configuration with the fields that a built-in recipe sets."""
    preset = resolve(GenerateConfig, recipe, {})
    return replace(config, **{name: getattr(preset, name) for name in read_yaml(recipe_path(recipe))})


def flags_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows the script's docstring as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def parse_with(
    parser: argparse.ArgumentParser, config_class: type, argv: list[str] | None
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The script's own flags, and the given ones of an lbgen verb, which the parser gets in addition."""
    own = {action.dest for action in parser._actions}
    add_arguments(parser, config_class)
    arguments = parser.parse_args(argv)
    return arguments, {name: value for name, value in vars(arguments).items() if name not in own}


def heading() -> str:
    """The command, the day, the machine and the versions behind the figures."""
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}), {torch.get_num_threads()} threads"
    if DEVICE == "cuda":
        machine = f"{torch.cuda.get_device_name()}, {machine}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "peft"))
    return f"`python {shlex.join(sys.argv)}`, {date.today()}\n{machine}; {versions}\n"


def line(cells: Iterable[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def markdown(lines: list[list[str]]) -> str:
    """A Markdown table; the first line has the titles."""
    titles, *rows = lines
    return "\n".join(line(cells) for cells in (titles, ["---"] * len(titles), *rows))


def table(results: dict[str, Measured], images: int, tflop: dict[str, float]) -> str:
    """Markdown, one line a version; ratios are to the first one.

    images: how many one call makes. tflop: what each version needs for one of them.
    """
    titles = ["version", "seconds, median", "images/s", "times as fast", "peak memory, GB", "share of it"]
    ceiling = matrix_ceiling() if DEVICE == "cuda" else None
    lines = [titles + ["share of the matrix ceiling"] * (ceiling is not None)]
    reference = next(iter(results.values()))
    for name, result in results.items():
        speed = images / result.seconds
        cells = [name, f"{result.seconds:.3f}", f"{speed:.2f}", f"{reference.seconds / result.seconds:.2f}"]
        cells += [f"{result.peak / 1e9:.2f}", f"{result.peak / reference.peak:.2f}" if reference.peak else ""]
        lines.append(cells + ([f"{speed * tflop[name] / ceiling:.0%}"] if ceiling else []))
    text = markdown(lines)
    work = f"{next(iter(tflop.values())):.3g} TFLOP an image in the first line"
    return text + (f"\n\n{work}; matrix ceiling {ceiling:.0f} TFLOP/s" if ceiling else "")

"""`lbgen bias`: answers of backbones to published benchmarks, and the figures computed from them.

Torch is imported only after all checks that do not need it; scoring saved answers never needs it.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbgen.configuration import saved
from lbgen.configuration.documentation import Documented
from lbgen.configuration.ranges import ensure_config
from lbgen.configuration.saved import CONFIG
from lbgen.configuration.yaml_lines import read_yaml
from lbgen.errors import UserError
from lbgen.evaluation.bias import cue_conflict, focus, imagenet9, imagenet_c, imagenet_variants, output
from lbgen.evaluation.bias.benchmark import Benchmark, BenchmarkParts, find_sources, incompleteness
from lbgen.evaluation.bias.classes import outputs_of_imagenet
from lbgen.evaluation.bias.config import ANSWERS, FIGURES, LOCK, WRITTEN, BiasConfig
from lbgen.models.backbones import display_names
from lbgen.models.backbones.location import find_local
from lbgen.runs import atomic, outputs
from lbgen.runs.console import counted, result, say, table, warn
from lbgen.runs.lock import locked
from lbgen.runs.parsing import Name, read_json

if TYPE_CHECKING:
    from lbgen.models.backbones.backbone import Backbone

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        cue_conflict.BENCHMARK,
        focus.BENCHMARK,
        imagenet9.BENCHMARK,
        imagenet_c.BENCHMARK,
        *imagenet_variants.BENCHMARKS,
    )
}
NOT_COMPARED = ("output", "batch_size")
"""Fields that another run in the same folder may change."""


@dataclass(frozen=True)
class BiasResult(Documented):
    """Where the bias benchmarks wrote their figures."""

    figures: Path
    """bias.json."""
    backbones: output.Results
    """The figures in bias.json: backbone -> benchmark -> name -> value."""
    next_command: str
    """The command that scores the first of the saved answers again; empty for a run that scored saved answers."""


def bias(config: BiasConfig) -> BiasResult:
    """Measure the biases of image classifiers with published benchmarks, or score saved answers.

    Writes bias.json and the answer to every image to `config.output`, and returns the path and the figures. A run that
    is started again continues. Raises UserError for unreadable input, and for another configuration in the same folder.

    >>> import lbgen
    >>> lbgen.bias(lbgen.BiasConfig(backbones=("resnet50.a1_in1k",), data="data", output="runs/bias"))
    """
    ensure_config(config, BiasConfig)
    folder = config.folder
    benchmarks: dict[str, Benchmark] = {name: BENCHMARKS[name] for name in config.benchmarks}
    if config.answers is not None and not os.path.isfile(config.answers):
        what = "it is no file" if os.path.exists(config.answers) else "no such file"
        raise UserError(f"--answers {config.answers}: {what}; give a CSV that a run left in answers/")
    if config.data is not None and not os.path.isdir(config.data):
        raise UserError(f"--data {config.data}: no such folder; give the one that holds the benchmarks")
    names = _names(config)
    sources = find_sources(Path(config.data), benchmarks) if config.data is not None else BenchmarkParts()
    atomic.ensure_writable(folder)
    outputs.ensure_outside(folder, sources.folders)
    outputs.ensure_own(folder, _is_of_bias(folder), WRITTEN, "bias")
    atomic.refuse_links(folder, WRITTEN)
    with locked(folder / LOCK, str(folder)):
        if (folder / CONFIG).is_file():
            saved.ensure_same(config, folder / CONFIG, NOT_COMPARED)
        if config.answers is not None:
            return _scored(config, benchmarks)
        return _measured(config, names, benchmarks, sources)


# ---- saved answers ----


def _scored(config: BiasConfig, benchmarks: dict[str, Benchmark]) -> BiasResult:
    """The figures of saved answers to one benchmark."""
    assert config.answers is not None
    path = Path(config.answers)
    ((key, benchmark),) = benchmarks.items()
    say(table([("answers", config.answers), ("benchmark", key), ("output", str(config.folder))]))
    given = benchmark.read_answers(path)
    names = given.values("imagename").tolist() if "imagename" in given.table.column_names else []
    if repeated := len(names) - len(set(names)):
        warn(f"warning: {path}: an imagename is repeated in {counted(repeated, 'row')}; each counts as an image")
    figures = benchmark.figures(given)
    saved.save(config, config.folder / CONFIG)
    name = path.stem
    results = {name: {key: {**figures, "formula": benchmark.formula}}}
    return _finish(config, results, {name: {"answers": str(config.answers)}}, benchmarks, {})


# ---- backbones ----


def _names(config: BiasConfig) -> list[str]:
    """The name of each backbone; refuses, without torch, a backbone with unsuitable files or classes."""
    names = display_names(config.backbones)
    for backbone in config.backbones:
        location = find_local(backbone)
        class_names = location.config.class_names if location and location.config else None
        if class_names is not None:
            outputs_of_imagenet(backbone, class_names, len(class_names))
    return names


def _measured(
    config: BiasConfig, names: list[str], benchmarks: dict[str, Benchmark], sources: BenchmarkParts
) -> BiasResult:
    say(_opening(config, sources))
    for missing in sources.missing.values():
        warn(f"warning: {missing}; the others continue")
    for name in sources:
        if incomplete := incompleteness(name, sources.counts[name]):
            warn(f"warning: {incomplete}; get it again from {benchmarks[name].source}, or mind the number of images")
    results: output.Results = {}
    made_of: dict[str, Any] = {}
    folders = [config.folder / ANSWERS / place for place in file_names(names)]
    for folder in folders:
        _ensure_of_these_images(folder, benchmarks, sources)
    _download(
        backbone
        for backbone, folder in zip(config.backbones, folders, strict=True)
        if any(not (folder / f"{key}.csv").is_file() for key in sources)
    )
    for name, folder, backbone in zip(names, folders, config.backbones, strict=True):
        made_of[name] = _answered(config, backbone, folder, benchmarks, sources)
        results[name] = {}
        for key in sources:
            path = folder / f"{key}.csv"
            results[name][key] = {
                **benchmarks[key].figures(benchmarks[key].read_answers(path)),
                "formula": benchmarks[key].formula,
                "preprocessing": benchmarks[key].preprocessing,
                "counts": sources.counts[key],
                "answers": path.relative_to(config.folder).as_posix(),
            }
    return _finish(config, results, made_of, benchmarks, sources.missing)


def _answered(
    config: BiasConfig, name: str, folder: Path, benchmarks: dict[str, Benchmark], sources: BenchmarkParts
) -> dict[str, Any]:
    """Save a backbone's answers to all benchmarks, and return its identity."""
    record = folder / "backbone.json"
    recorded: dict[str, Any] = {}
    if record.is_file():
        recorded = read_json(atomic.read_bytes(record), dict[Name, Any], str(record))
    waiting = [key for key in sources if not (folder / f"{key}.csv").is_file()]
    if not waiting:
        location = find_local(name)
        if location and atomic.sha256(location.weights) != recorded.get("weights_sha256"):
            raise _other_weights(config, name)
        return recorded
    backbone = _loaded(name)
    if recorded and _comparable(recorded) != _comparable(backbone.identity):
        raise _other_weights(config, name)
    outputs_of_imagenet(name, backbone.class_names, backbone.outputs)
    saved.save(config, config.folder / CONFIG)  # from now on the folder belongs to this run
    folder.mkdir(parents=True, exist_ok=True)
    output.write_record(record, backbone.identity)

    from lbgen.evaluation.bias.measure import answer  # late: it imports torch

    for key in waiting:
        answer(benchmarks[key], sources[key], backbone, folder / f"{key}.csv", config.batch_size)
    return backbone.identity


def _ensure_of_these_images(folder: Path, benchmarks: dict[str, Benchmark], sources: BenchmarkParts) -> None:
    """Refuse finished answers if --data had another number of images when they were computed."""
    for key, counts in sources.counts.items():
        path = folder / f"{key}.csv"
        now = sum(part["found"] for part in counts.values())
        if path.is_file() and (then := len(benchmarks[key].read_answers(path))) != now:
            raise UserError(
                f"{path} has {then:,} images, but --data now has {now:,} of {key}; restore them, or choose another "
                "--output"
            )


def _download(backbones: Iterable[str]) -> None:
    """Download the files of every backbone before the first one is measured, which may take hours."""
    for name in backbones:
        if find_local(name) is None:
            from lbgen.models.backbones.backbone import locate  # late: it imports torch

            locate(name)


def _loaded(name: str) -> Backbone:
    import torch  # late: slow

    from lbgen.models.backbones import load_backbone

    return load_backbone(name, "cuda" if torch.cuda.is_available() else "cpu")


def _comparable(identity: dict[str, Any]) -> dict[str, Any]:
    """The part of an identity that determines answers, without the folder, which may have been moved."""
    return {name: value for name, value in identity.items() if name != "name"}


def _other_weights(config: BiasConfig, name: str) -> UserError:
    return UserError(
        f"{config.output} holds answers of other weights or library versions for backbone {name}; restore them, or "
        "choose another --output"
    )


def file_names(names: list[str]) -> list[str]:
    """A unique folder name for each backbone; characters that a file system may refuse are replaced."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^\w.-]", "_", name).lstrip(".") or "_"
        taken, number, unique = set(map(str.casefold, found)), 1, plain
        while unique.casefold() in taken:
            number += 1
            unique = f"{plain}-{number}"
        found.append(unique)
    return found


# ---- printed lines ----


def _opening(config: BiasConfig, sources: BenchmarkParts) -> str:
    rows = [("backbones", ", ".join(config.backbones))]
    for name, counts in sources.counts.items():
        rows.append((name, f"{sum(part['found'] for part in counts.values()):,} images"))
    return table([*rows, ("output", str(config.folder))])


def _finish(
    config: BiasConfig,
    results: output.Results,
    made_of: dict[str, Any],
    benchmarks: dict[str, Benchmark],
    missing: dict[str, str],
) -> BiasResult:
    path = config.folder / FIGURES
    output.write(path, results, made_of, missing)
    result(output.table(results, benchmarks))
    say(f"every figure: {path}")
    if config.answers is not None:
        return BiasResult(path, results, "")
    key, first = next(iter(next(iter(results.values())).items()))
    answers, again = str(config.folder / first["answers"]), f"{config.folder}-scored"
    command = ["lbgen", "bias", "--answers", answers, "--benchmarks", key, "--output", again]
    return BiasResult(path, results, shlex.join(command))


def _is_of_bias(folder: Path) -> bool:
    path = folder / CONFIG
    if not os.path.isfile(path):
        return False
    try:
        return {"backbones", "benchmarks", "answers"} <= read_yaml(path).keys()
    except (OSError, UserError):
        return False

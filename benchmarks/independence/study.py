"""The independence term on the micro world, compared with its rivals: `python benchmarks/independence/study.py`.

Every set of study.yaml is aligned and generated (or rendered) with every seed, and judged; each gives one JSON line in
`runs/independence/results.jsonl`. Finished rows are not made again, so the study can be interrupted, grown, and spread
over machines by --sets and --seeds. Backbones on such sets are measured by `lbgen reproduce`.
`--table` only prints the tables of these rows, `--pictures FILE` writes the first images of every set side by side.
With `--world DIR` the bias is another one (planted_world.py): the figures of scenes are then figures of the first
factor that is linked there.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

import lbgen
from benchmarks.independence.planted_world import JUDGED, load_factor_judge, load_world
from benchmarks.independence.tables import GENERATED, OURS, RENDERS, STUDY, tables
from benchmarks.measuring import flags_parser
from lbgen.alignment.config import AlignConfig
from lbgen.configuration.recipes import resolve
from lbgen.datasets.index import read_index
from lbgen.metrics.intervals import bootstrap_intervals
from lbgen.microworld import SEMANTICS
from lbgen.microworld.judge import load_judge
from lbgen.microworld.scenes import World, home_values, render
from lbgen.microworld.world import CATEGORIES
from lbgen.models.quality import load_quality
from lbgen.models.semantics import load_semantics
from lbgen.quickstart.comparison import FIGURES, Judged, scene_information
from lbgen.quickstart.judging import judge_images, load_images
from lbgen.quickstart.run import QuickstartConfig, generate_configs

NOISE = 1000
"""Added to a set's seed to give the noise seed of its images, which all sets share and no alignment uses."""


@dataclass(frozen=True)
class Study:
    folder: Path
    images_per_category: int
    alignments: dict[str, dict[str, Any]]
    world_folder: Path | None
    trajectory: dict[str, Any] = field(default_factory=dict)
    """Changes to the recipe's generator and its sampling, for every set."""

    @property
    def world(self) -> World:
        return load_world(self.world_folder)

    def config(self, name: str, seed: int) -> AlignConfig:
        """Configuration of a set's alignment; the sets in GENERATED use only its generator and sampling."""
        changes = self.alignments.get(name, {})
        output = self.folder / f"{name} {seed}".replace(" ", "-").replace("+", "and")
        generator = "microworld" if self.world_folder is None else str(self.world_folder / "generator")
        config = resolve(
            AlignConfig, "microworld", {"generator": generator, **self.trajectory, **changes, "seed": seed}
        )
        return replace(config, output=str(output), logger="none", evaluate_every=0)


def image_set(study: Study, name: str, seed: int) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 64, 64) in [0, 1] and labels (N,), the same labels in every set."""
    if name in RENDERS:
        categories = np.repeat(np.arange(len(CATEGORIES)), study.images_per_category)
        drawn_from = study.world if name == "biased renders" else World(styles=("photo",))
        pictures = render(categories, 700_000_000 + seed, drawn_from).images
        return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(categories)
    config = study.config(name, seed)
    if name in study.alignments:
        lbgen.align(config)
    quickstart = QuickstartConfig(images_per_category=study.images_per_category, seed=NOISE + seed)
    generation = generate_configs(quickstart, config)["diverse_prompts" if name == "diverse prompts" else "base"]
    adapter = config.folder / "adapter" if name in study.alignments else None
    output = config.folder / "images"
    lbgen.generate(replace(generation, output=str(output), adapter=adapter))
    index = sorted(read_index(output).to_pylist(), key=lambda row: CATEGORIES.index(row["name"]))
    labels = torch.tensor([CATEGORIES.index(row["name"]) for row in index])
    return load_images(output, [row["file"] for row in index]), labels


@torch.no_grad()
def judged(images: Tensor, labels: Tensor, study: Study) -> dict[str, Judged]:
    """Verdicts by factor; in another world, each factor's verdicts take the field `scene`."""
    quality = load_quality("antonyms", load_semantics(str(SEMANTICS), torch.device("cpu"), torch.float32))
    assert quality is not None
    seen = judge_images(images, labels, load_judge(), quality)
    if study.world_folder is None:
        return {"scene": seen}
    judge = load_factor_judge(study.world_folder)
    verdicts = [judge(part.clamp(0, 1))[1] for part in images.split(100)]
    return {name: seen._replace(scene=torch.cat([each[name] for each in verdicts]).argmax(dim=-1)) for name in JUDGED}


def homes(factor: str) -> Tensor:
    return torch.from_numpy(home_values(np.arange(len(CATEGORIES)), factor))


def measured(study: Study, name: str, seed: int) -> dict[str, Any]:
    """A row of the results: every figure with its 95% interval."""
    images, labels = image_set(study, name, seed)
    seen = judged(images, labels, study)
    factors = tuple(study.world.links)

    def figures(chosen: Tensor) -> Tensor:
        return torch.tensor([figure.measure(seen[factors[0]].at(chosen), homes(factors[0])) for figure in FIGURES])

    keys = [figure.key for figure in FIGURES]
    intervals = bootstrap_intervals(figures, labels, resamples=300)
    return {
        "set": name,
        "seed": seed,
        "images": len(images),
        "factor": factors[0],
        "figures": dict(zip(keys, figures(torch.arange(len(labels))).tolist(), strict=True)),
        "intervals": {key: list(interval) for key, interval in zip(keys, intervals, strict=True)},
        "information": {factor: scene_information(each, homes(factor)) for factor, each in seen.items()},
    }


def write_pictures(study: Study, names: list[str], path: Path, seed: int = 0, shown: int = 3) -> None:
    """One row a category; the first images of every set side by side, a white line between sets."""
    columns = []
    for name in names:
        images, _ = image_set(study, name, seed)
        chosen = images.view(len(CATEGORIES), -1, *images.shape[1:])[:, :shown]  # (C, shown, 3, H, W)
        columns.append(chosen.permute(0, 3, 1, 4, 2).reshape(len(CATEGORIES) * images.shape[2], -1, 3))
        columns.append(torch.ones(columns[0].shape[0], 6, 3))
    Image.fromarray((torch.cat(columns[:-1], dim=1) * 255).round().to(torch.uint8).numpy()).save(path)


def alignments_of(plan: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Changes to the recipe microworld, by name: the sets of the whole study, and the ablations."""
    alignments = {name: plan["shared"] | changes for name, changes in plan["alignments"].items()}
    return alignments, {name: alignments[OURS] | changes for name, changes in plan["ablations"].items()}


def make_rows(study: Study, names: list[str], seeds: list[int]) -> list[dict[str, Any]]:
    """The rows of the output folder; missing ones are made and added."""
    results = study.folder / "results.jsonl"
    study.folder.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    images, factor = study.images_per_category * len(CATEGORIES), next(iter(study.world.links))
    if any(row["images"] != images or row.get("factor", factor) != factor for row in rows):
        raise SystemExit(f"{results}: rows of another --images-per-category or --world; choose another --output")
    done = {(row["set"], row["seed"]) for row in rows}
    for seed in seeds:
        for name in names:
            if (name, seed) not in done:
                rows.append(measured(study, name, seed))
                with results.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(json.dumps(rows[-1]), flush=True)
    return rows


def main(argv: list[str] | None = None) -> None:
    arguments = parsed(argv)
    plan = yaml.safe_load(arguments.plan.read_text())
    alignments, ablations = alignments_of(plan)
    whole = [*GENERATED, *alignments, *RENDERS]
    names = arguments.sets or whole
    if unknown := set(names) - {*whole, *ablations}:
        raise SystemExit(f"--sets: {', '.join(sorted(unknown))}: not in {arguments.plan}")
    study = Study(
        folder=arguments.output,
        images_per_category=arguments.images_per_category or plan["images_per_category"],
        alignments=alignments | ablations,
        world_folder=arguments.world,
        trajectory=plan.get("trajectory", {}),
    )
    if arguments.pictures:
        return write_pictures(study, names, arguments.pictures)
    rows = make_rows(study, names, [] if arguments.table else arguments.seeds or plan["seeds"])
    if rows:
        print(tables(rows))


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = flags_parser(__doc__)
    parser.add_argument("--plan", type=Path, default=STUDY, help="plan of the study (default: study.yaml)")
    parser.add_argument("--output", type=Path, default=Path("runs/independence"))
    parser.add_argument("--sets", nargs="+", metavar="SET", help="sets of the plan (default: all but ablations)")
    parser.add_argument("--seeds", nargs="+", type=int, help="(default: those of the plan)")
    parser.add_argument("--images-per-category", type=int, help="(default: that of the plan)")
    parser.add_argument("--world", type=Path, help="folder of a generator with another planted bias, and its judge")
    parser.add_argument("--table", action="store_true", help="only print the tables of what is there")
    parser.add_argument("--pictures", type=Path, help="only write the first images of the named sets to this file")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()

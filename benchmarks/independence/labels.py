"""Label accuracy that the recipe independent loses, and ways to regain it: `python benchmarks/independence/labels.py`.

Every variant of labels.yaml (a change to the recipe) is aligned with every seed; its adapter is kept at several numbers
of updates, so that a stop costs generation only. Each adapter, and the base generator, makes a dataset with
`--screen label`; the first attempts at images that screening rejected are rendered again, so that one dataset gives
two rows, unscreened and screened. Each is a JSON line in `runs/labels/results.jsonl`. Rows that are there are not made
again: the study can be interrupted, and grown by --variants, --seeds, --updates and --screening. `--table` only prints
the tables.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

import lbgen
from benchmarks.independence.study import NOISE, homes
from benchmarks.measuring import flags_parser, markdown
from lbgen.alignment.config import AlignConfig
from lbgen.configuration.recipes import resolve
from lbgen.datasets.index import read_index
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import PlannedImage
from lbgen.generation.render import Renderer
from lbgen.generation.workers.loading import load_prepared_generator
from lbgen.metrics.intervals import bootstrap_intervals
from lbgen.microworld import SEMANTICS
from lbgen.microworld.judge import load_judge
from lbgen.microworld.world import CATEGORIES
from lbgen.models.quality import load_quality
from lbgen.models.semantics import load_semantics
from lbgen.quickstart.comparison import FIGURES, Judged
from lbgen.quickstart.judging import judge_images, load_images
from lbgen.quickstart.run import QuickstartConfig, generate_configs, screened
from lbgen.vocabulary.vocabulary import load_vocabulary

PLAN = Path(__file__).with_name("labels.yaml")
BASE, RECIPE, UNSCREENED = "base", "recipe", "none"
THRESHOLDS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
"""Least probabilities of the own category; for each, the images that a label check of rank 1 rejects are counted."""
INFORMATION, ACCURACY = "category_scene_mutual_information_bits", "label_accuracy"
MOST_POINTS, MOST_INFORMATION = 2.0, 0.15
"""The goals, against the base's images of the same noise: points of label accuracy lost, share of the information."""
TITLES = (
    "variant", "updates", "screening", "seeds", "label accuracy", "base's", "points lost: mean", "most",
    "information, bits", "of the base's: mean", "most", "diversity", "drawn again", "goals reached",
)  # fmt: skip
Row = dict[str, Any]


@dataclass(frozen=True)
class Study:
    folder: Path
    images_per_category: int
    kept_updates: tuple[int, ...]
    variants: dict[str, dict[str, Any]]
    screenings: dict[str, dict[str, Any]]

    def alignment(self, variant: str, seed: int) -> AlignConfig:
        config = resolve(AlignConfig, "independent", {**self.variants.get(variant, {}), "seed": seed})
        output = self.folder / f"{variant} {seed}".replace(" ", "-")
        return replace(config, output=str(output), logger="none", evaluate_every=0, evaluation_images=12, guard="off")


def adapter_after(study: Study, variant: str, seed: int, updates: int) -> Path:
    """The adapter after a number of updates; adapters at the kept numbers before it are kept, too."""
    config = study.alignment(variant, seed)
    kept = config.folder / "adapters"
    done = max((int(path.name) for path in kept.glob("[0-9]*")), default=0)
    if updates < done and not (kept / str(updates)).is_dir():
        raise SystemExit(f"{kept}: none was kept after {updates} updates, and the run is at {done}")
    for stop in sorted({*study.kept_updates, updates}):
        if done < stop <= updates:
            result = lbgen.align(replace(config, max_steps=stop))
            shutil.copytree(result.adapter, kept / f".{stop}", dirs_exist_ok=True)
            (kept / f".{stop}").rename(kept / str(stop))
    return kept / str(updates)


def generation(study: Study, variant: str, seed: int, updates: int, screening: str) -> GenerateConfig:
    """Configuration of the screened dataset, with the same noise for every variant."""
    align = study.alignment(variant, seed)
    images = QuickstartConfig(images_per_category=study.images_per_category, seed=NOISE + seed)
    plain = replace(
        generate_configs(images, align)["base"],
        output=str(align.folder / f"images {updates} {screening}".replace(" ", "-")),
        adapter=None if variant == BASE else adapter_after(study, variant, seed, updates),
    )
    return replace(screened(plain, align), **study.screenings[screening])


def measured(study: Study, variant: str, seed: int, updates: int, screening: str) -> list[Row]:
    """Two rows: the images before and after screening."""
    config = generation(study, variant, seed, updates, screening)
    lbgen.generate(config)
    index = sorted(read_index(Path(config.output)).to_pylist(), key=lambda row: (row["label"], row["key"]))
    labels = torch.tensor([CATEGORIES.index(row["name"]) for row in index])
    accepted = load_images(Path(config.output), [row["file"] for row in index])
    rejected = [number for number, row in enumerate(index) if row["attempt"]]
    first = accepted.clone()
    if rejected:
        first[rejected] = first_attempts(config, [index[number] for number in rejected])
    shared = {"variant": variant, "seed": seed, "updates": updates, "images": len(index)}
    counts = {
        "drawn_again": len(rejected),
        "draws": len(index) + sum(row["attempt"] for row in index),
        "kept_though_rejected": sum(len(row["rejections"]) > row["attempt"] for row in index),
    }
    return [
        shared | {"screening": UNSCREENED} | figures(first, labels),
        shared | {"screening": screening} | counts | figures(accepted, labels),
    ]


def first_attempts(config: GenerateConfig, rows: list[Row]) -> Tensor:
    """The first attempts at the images that screening drew again, (N, 3, H, W) in [0, 1]."""
    categories = {category.id: category for category in load_vocabulary(config.vocabulary)}
    images = [PlannedImage(categories[row["id"]], row["label"], int(row["key"].rpartition("_")[2])) for row in rows]
    sized = replace(config, batch_size=32)
    renderer = Renderer(load_prepared_generator(sized, "cpu"), sized)
    pixels = [torch.from_numpy(renderer.render(images[i : i + 32]).pixels) for i in range(0, len(images), 32)]
    return torch.cat(pixels).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def figures(images: Tensor, labels: Tensor) -> Row:
    """Every figure of the quickstart with its 95% interval, and the images that label checks would reject."""
    space = load_semantics(str(SEMANTICS), torch.device("cpu"), torch.float32)
    quality = load_quality("antonyms", space)
    assert quality is not None
    seen, home = judge_images(images, labels, load_judge(), quality), homes("scene")

    def measure(judged: Judged) -> Tensor:
        return torch.tensor([figure.measure(judged, home) for figure in FIGURES])

    keys = [figure.key for figure in FIGURES]
    intervals = bootstrap_intervals(lambda rows: measure(seen.at(rows)), labels, resamples=300)
    texts = space.embed_texts([AlignConfig.text_template.replace("{name}", name) for name in CATEGORIES])
    cosines = torch.cat([space.embed_images(part) for part in images.split(64)]) @ texts.T
    return {
        "figures": dict(zip(keys, measure(seen).tolist(), strict=True)),
        "intervals": {key: list(interval) for key, interval in zip(keys, intervals, strict=True)},
        "checks": caught((space.logit_scale * cosines).softmax(dim=1), labels, seen.category != labels),
    }


def caught(probabilities: Tensor, labels: Tensor, wrong: Tensor) -> Row:
    """By threshold, the number of images that the check rejects, and how many of these the judge finds wrong.

    probabilities: (N, C) of the language space. labels: (N,). wrong: (N,) booleans.
    """
    own, nearest = probabilities.gather(1, labels[:, None])[:, 0], probabilities.argmax(dim=1) == labels
    counts = {}
    for least in THRESHOLDS:
        rejected = ~nearest | (own < least)
        counts[str(least)] = {"rejected": int(rejected.sum()), "wrong": int((rejected & wrong).sum())}
    return counts


# ---- rows and tables ----


def make_rows(study: Study, variants: list[str], seeds: list[int], updates: list[int], screening: str) -> list[Row]:
    """The rows of the output folder; missing ones are made and added."""
    results = study.folder / "results.jsonl"
    study.folder.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    if any(row["images"] != study.images_per_category * len(CATEGORIES) for row in rows):
        raise SystemExit(f"{results}: rows of another --images-per-category; choose another --output")
    done = {(row["variant"], row["seed"], row["updates"], row["screening"]) for row in rows}
    for seed in seeds:
        asked = [(variant, seed, stop) for variant in variants for stop in (updates if variant != BASE else [0])]
        for each in asked:
            if (*each, screening) not in done:
                new = measured(study, *each, screening)
                new = new[1:] if (*each, UNSCREENED) in done else new
                with results.open("a") as file:
                    file.write("".join(json.dumps(row) + "\n" for row in new))
                print("\n".join(map(json.dumps, new)), flush=True)
                rows += new
    return rows


def compared(rows: list[Row]) -> list[tuple[Row, Row]]:
    """Each row of an adapter with the base's row of the same seed and screening."""
    bases = {(row["seed"], row["screening"]): row for row in rows if row["variant"] == BASE}
    pairs = [(row, bases.get((row["seed"], row["screening"]))) for row in rows if row["variant"] != BASE]
    return [(row, base) for row, base in pairs if base is not None]


def points_lost(row: Row, base: Row) -> float:
    return 100 * (base["figures"][ACCURACY] - row["figures"][ACCURACY])


def share_left(row: Row, base: Row) -> float:
    return row["figures"][INFORMATION] / base["figures"][INFORMATION]


def table(rows: list[Row]) -> str:
    """One line for each variant, stop and screening: means over the seeds and the worst of them, against the goals."""
    groups: dict[tuple[str, int, str], list[tuple[Row, Row]]] = {}
    for row, base in sorted(compared(rows), key=lambda pair: pair[0]["seed"]):
        groups.setdefault((row["variant"], row["updates"], row["screening"]), []).append((row, base))
    lines = [list(TITLES)]
    for (variant, updates, screening), pairs in sorted(groups.items()):
        lost, left = ([measure(*pair) for pair in pairs] for measure in (points_lost, share_left))
        reached = sum(
            points <= MOST_POINTS + 1e-6 and share < MOST_INFORMATION for points, share in zip(lost, left, strict=True)
        )
        accuracy, bits, diversity = (
            statistics.mean(row["figures"][key] for row, _ in pairs) for key in (ACCURACY, INFORMATION, "diversity")
        )
        base = statistics.mean(base["figures"][ACCURACY] for _, base in pairs)
        again = statistics.mean(row.get("drawn_again", 0) / row["images"] for row, _ in pairs)
        lines.append([
            variant, str(updates), screening, ", ".join(str(row["seed"]) for row, _ in pairs),
            f"{accuracy:.2%}", f"{base:.2%}", f"{statistics.mean(lost):.1f}", f"{max(lost):.1f}", f"{bits:.2f}",
            f"{statistics.mean(left):.1%}", f"{max(left):.1%}", f"{diversity:.2f}", f"{again:.1%}",
            f"{reached} of {len(pairs)}",
        ])  # fmt: skip
    return markdown(lines)


def seed_table(rows: list[Row]) -> str:
    """One line for each adapter's set; points lost and share of the information if the base's set was made."""
    bases = {(row["seed"], row["screening"]): base for row, base in compared(rows)}
    lines = [["variant", "updates", "seed", "screening", "label accuracy", "points lost", "information, bits",
              "of the base's", "diversity", "drawn again"]]  # fmt: skip
    made = [row for row in rows if row["variant"] != BASE]
    for row in sorted(made, key=lambda row: (row["variant"], row["updates"], row["seed"], row["screening"])):
        base, figures = bases.get((row["seed"], row["screening"])), row["figures"]
        low, high = row["intervals"][INFORMATION]
        lines.append([
            row["variant"], str(row["updates"]), str(row["seed"]), row["screening"], f"{figures[ACCURACY]:.1%}",
            f"{points_lost(row, base):.1f}" if base else "–",
            f"{figures[INFORMATION]:.2f} ({low:.2f} to {high:.2f})",
            f"{share_left(row, base):.1%}" if base else "–", f"{figures['diversity']:.2f}",
            f"{row.get('drawn_again', 0) / row['images']:.1%}",
        ])  # fmt: skip
    return markdown(lines)


def check_table(rows: list[Row]) -> str:
    """What each threshold would reject of the first attempts, over all seeds of a variant and stop."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row["screening"] == UNSCREENED:
            groups.setdefault((row["variant"], row["updates"]), []).append(row)
    lines = [["variant", "updates", "seeds", "images", "wrong by the judge",
              *(f"below {least:g}" if least else "not the nearest" for least in THRESHOLDS)]]  # fmt: skip
    for (variant, updates), members in sorted(groups.items()):
        images = sum(row["images"] for row in members)
        wrong = round(sum(row["images"] * (1 - row["figures"][ACCURACY]) for row in members))
        sums = [
            [sum(row["checks"][str(least)][key] for row in members) for key in ("rejected", "wrong")]
            for least in THRESHOLDS
        ]
        cells = [f"{rejected / images:.1%} of all, {found} of the wrong" for rejected, found in sums]
        lines.append([variant, str(updates), str(len(members)), str(images), str(wrong), *cells])
    return markdown(lines)


def main(argv: list[str] | None = None) -> None:
    arguments = parsed(argv)
    plan = yaml.safe_load(arguments.plan.read_text())
    study = Study(
        arguments.output,
        arguments.images_per_category or plan["images_per_category"],
        tuple(plan["kept_updates"]),
        plan["variants"],
        plan["screenings"],
    )
    names = arguments.variants or [BASE, RECIPE]
    if unknown := set(names) - {BASE, *study.variants}:
        raise SystemExit(f"--variants: {', '.join(sorted(unknown))}: not in {arguments.plan}")
    seeds = [] if arguments.table else arguments.seeds if arguments.seeds is not None else plan["seeds"]
    screening = arguments.screening or next(iter(study.screenings))
    if screening not in study.screenings:
        raise SystemExit(f"--screening {screening}: not in {arguments.plan}")
    rows = make_rows(study, names, seeds, arguments.updates or plan["updates"], screening)
    print("\n\n".join([table(rows), seed_table(rows), check_table(rows)]))


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = flags_parser(__doc__)
    parser.add_argument("--plan", type=Path, default=PLAN, help="plan of the study (default: labels.yaml)")
    parser.add_argument("--output", type=Path, default=Path("runs/labels"))
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="variants of the plan (default: base and recipe)")
    parser.add_argument("--seeds", nargs="+", type=int, help="(default: those of the plan)")
    parser.add_argument("--updates", nargs="+", type=int, help="stops that are measured (default: that of the plan)")
    parser.add_argument("--screening", help="a screening of the plan (default: its first)")
    parser.add_argument("--images-per-category", type=int, help="(default: that of the plan)")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()

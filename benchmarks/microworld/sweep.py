"""Sweep the alignment's settings on the micro world: `python benchmarks/microworld/sweep.py`.

Every setting below, with every seed, is aligned, generated from (the same noise for all) and judged; one JSON line
each in `runs/sweep/results.jsonl`. What is there already is not done again, so the sweep can be interrupted and grown.
`--table` prints the lines as the Markdown table of docs/microworld.md. The flags of `lbgen align` change every setting.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import lbgen
from benchmarks.measuring import flags_parser, markdown, parse_with
from lbgen.alignment.config import AlignConfig
from lbgen.configuration.recipes import resolve
from lbgen.quickstart.comparison import FIGURES
from lbgen.quickstart.judging import HOMES, judge_sets
from lbgen.quickstart.run import QuickstartConfig, generate_configs

START: dict[str, Any] = {
    "batch_size": 12,
    "max_steps": 100,
    "learning_rate": 2e-3,
    "discriminator_learning_rate": 1e-3,
    "discriminator_hidden": 64,
    "discriminator_warmup_steps": 10,
    "differentiated_steps": 3,
    "entire_weight": 1.0,
    "individual_weight": 1.0,
    "quality_weight": 0.1,
    "base_weight": 0.0,
}
"""Base of every setting, on top of the recipe microworld: the rows stay valid if the recipe changes."""
SETTINGS: dict[str, dict[str, Any]] = {
    "start: the paper's weights": {},
    "60 updates": {"max_steps": 60},
    "80 updates": {"max_steps": 80},
    "K 1": {"differentiated_steps": 1},
    "K 6": {"differentiated_steps": 6},
    "individual 3": {"individual_weight": 3.0},
    "entire 3": {"entire_weight": 3.0},
    "entire 10": {"entire_weight": 10.0},
    "no adversarial term": {"entire_weight": 0.0},
    "quality 1": {"quality_weight": 1.0},
    "discriminator lr 1e-4": {"discriminator_learning_rate": 1e-4},
    "discriminator lr 3e-4": {"discriminator_learning_rate": 3e-4},
    "discriminator lr 1e-4, 120 updates": {"discriminator_learning_rate": 1e-4, "max_steps": 120},
    "discriminator lr 3e-4, 120 updates": {"discriminator_learning_rate": 3e-4, "max_steps": 120},
    "discriminator lr 5e-4, 120 updates": {"discriminator_learning_rate": 5e-4, "max_steps": 120},
    "quality 1, discriminator lr 3e-4, 120 updates": {
        "quality_weight": 1.0,
        "discriminator_learning_rate": 3e-4,
        "max_steps": 120,
    },
    "discriminator lr 5e-3": {"discriminator_learning_rate": 5e-3},
    "lr 1e-3": {"learning_rate": 1e-3},
    "lr 4e-3": {"learning_rate": 4e-3},
    "pull to base 1": {"base_weight": 1.0},
    "entire 10, pull to base 10, 60 updates": {"entire_weight": 10.0, "base_weight": 10.0, "max_steps": 60},
    "detached input": {"detach_input": True},
    "features not normalised": {"normalize_features": False},
    "released code's objective": {
        "individual_weight": 0.0,
        "quality_weight": 0.0,
        "discriminator_texts": "released-code",
        "discriminator_template": "{name}",
        "normalize_features": False,
    },
}
"""Name -> what differs from START."""
NOISE = 1000
"""Seed of the measured images, the same for every setting; no alignment uses it."""


def images(config: AlignConfig, adapter: Path | None, output: Path, count: int) -> Path:
    base = generate_configs(QuickstartConfig(images_per_category=count, seed=NOISE), config)["base"]
    lbgen.generate(replace(base, output=str(output), adapter=adapter))
    return output


def measured(name: str, settings: dict[str, Any], seed: int, folder: Path, count: int) -> dict[str, Any]:
    """Align with one setting and seed, generate, judge."""
    config = resolve(AlignConfig, "microworld", {**START, **settings, "seed": seed})
    run = folder / f"{name} {seed}".replace(" ", "-").replace("'", "").replace(":", "")
    config = replace(config, output=str(run), logger="none", checkpoint_every=1000, evaluate_every=0)
    began = time.monotonic()
    lbgen.align(config)
    seconds = time.monotonic() - began
    base = images(config, None, folder / f"base-{config.steps}", count)
    before, after = judge_sets([base, images(config, run / "adapter", run / "images", count)], config)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return {
        "setting": name,
        "seed": seed,
        "align_seconds": round(seconds, 1),
        "base": {figure.key: figure.measure(before.judged, HOMES) for figure in FIGURES},
        "aligned": {figure.key: figure.measure(after.judged, HOMES) for figure in FIGURES},
    }


SHOWN = (
    ("category_scene_mutual_information_bits", "information, bits", "{:.2f}"),
    ("home_scene_rate", "home rate", "{:.2f}"),
    ("label_accuracy", "label accuracy", "{:.3f}"),
    ("diversity", "diversity", "{:.2f}"),
    ("scene_entropy_bits", "scenes, bits", "{:.2f}"),
    ("quality", "quality", "{:.2f}"),
    ("edge_density", "edges", "{:.3f}"),
    ("colour_entropy", "colours, bits", "{:.2f}"),
)


def table(rows: list[dict[str, Any]]) -> str:
    """One line a setting: the mean over its seeds, and their standard deviation in brackets where there are several."""
    lines = [["setting", "seeds", *(title for _, title, _ in SHOWN)]]
    groups = {"base": [rows[0]["base"]]}
    for row in rows:
        groups.setdefault(row["setting"], []).append(row["aligned"])
    for name, results in groups.items():
        cells = [name, "" if name == "base" else str(len(results))]
        for key, _, form in SHOWN:
            values = [result[key] for result in results]
            spread = f" ({form.format(statistics.stdev(values))})" if len(values) > 1 else ""
            cells.append(form.format(statistics.mean(values)) + spread)
        lines.append(cells)
    return markdown(lines)


def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--images-per-category", type=int, default=50)
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    arguments, given = parse_with(parser, AlignConfig, argv)
    folder = Path(given.pop("output", "runs/sweep"))
    changed = "".join(f", {name} {value}" for name, value in given.items())
    settings = {name + changed: {**SETTINGS[name], **given} for name in arguments.settings}
    results = folder / "results.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(row["setting"], row["seed"]) for row in rows}
    for seed in arguments.seeds if not arguments.table else []:
        for name, changes in settings.items():
            if (name, seed) not in done:
                rows.append(measured(name, changes, seed, folder, arguments.images_per_category))
                with results.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(json.dumps(rows[-1]), flush=True)
    if rows:
        print(table(rows))


if __name__ == "__main__":
    main()

"""Every script in benchmarks/ runs to its end at its smallest size and prints what it is for; no figure is looked at.

Most run in this process, which has the libraries already, and so have those that they start; those that
benchmarks/gpu.sh calls run as it calls them.
"""

import importlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lbgen.datasets.index import read_index
from lbgen.generation.config import GenerateConfig
from lbgen.generation.run import generate
from lbgen.microworld.judge import load_judge
from lbgen.microworld.world import CATEGORIES
from lbgen.quickstart.judging import load_images

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from benchmarks import measuring  # noqa: E402
from benchmarks.independence.tables import PAGE  # noqa: E402

TINY_RUN = "--steps 2 --differentiated-steps 1 --batch-size 2 --discriminator-warmup-steps 1"
SMALLEST = {
    "audit/duplicate_search.py": ("--images 200", "\n| 200 | "),
    "audit/floors.py": ("--sets 1 --images 48 --draws 2", "\n1 sets with masks:\n"),
    "audit/image_flags.py": ("--sides 64", "\n| scikit-learn, 24 | 64 | 0%, "),
    "audit/memory.py": ("--images 48", "48 images: "),
    "audit/near_duplicates.py": ("--pictures 4", "\n| sparse | today | "),
    "audit/workers.py": ("--images 8 --workers 1", "\n| 1 | "),
    "independence/gradient_norms.py": (f"--updates 1 --independence-bank 16 {TINY_RUN}", "| independence | "),
    "independence/memory_length.py": ("--categories 2 --memories 8 --images 4 --updates 2", "| after 2 updates | "),
    "independence/residual_content.py": ("--fitted 48 --tested 24 --images 48", "| scene, linked / free | "),
    "independence/step_cost.py": ("--categories 2 --banks 16 --side 8 --repeats 1", "| 2 | 16 | "),
    "microworld/composition.py": (
        "--updates 1 --tested 8 --images 2 --steps 1 --picture {folder}/pairs.png",
        "\n| microworld-pairs | A left, B right | ",
    ),
    "microworld/localization.py": (
        "--updates 1 --images 12 --steps 1 --repeats 1 --worst {folder}/worst.png",
        "| and the last | second half | yes | ",
    ),
    "speed/align_step.py": (
        "--vocabulary {names} --batch-size 1 --steps 2 --differentiated-steps 1 --repeats 1",
        "\nconvolutions, matrix products, attention: ",
    ),
    "speed/approximations.py": (
        "--vocabulary {names} --images-per-category 1 --batch-size 2 --steps 4",
        "| fast-deepcache | ",
    ),
    "speed/feed.py": (
        "--recipe micro --images 24 --repeats 1 --architecture test_convnext --batch-size 8 --image-size 32",
        "| both together | ",
    ),
    "speed/flops.py": ("", "| fast-dpm and fast-deepcache | "),
    "speed/fourteen_million.py": (
        "--categories 20 --images-per-category 5 --indexed 12 --shard-size 80 --real 2 --workers 0 --sample 0.5",
        "| audit of 0.5 of the images | 240 | ",
    ),
    "speed/generate.py": (
        "--vocabulary {names} --batch-size 2 --batch-sizes 1 --formats 1 --steps 1 --repeats 1",
        "| webdataset, webp | 2 | ",
    ),
    "speed/matrix_rate.py": ("--miniature --images 1 --repeats 1", "| decoder of the micro world, 1 images | "),
    "speed/memory.py": ("--images 2 --generated 2 --miniature", "| align --recipe paper | 2 | "),
    "speed/render.py": ("--images 12 --repeats 1", "balanced corpus: "),
    "speed/stored_size.py": ("", "| webp | 256 | "),
    "speed/whole_run.py": (
        "--vocabulary {names} --images-per-category 1 --steps 1 --repeats 1",
        "| lbgen generate | ",
    ),
    "speed/waiting.py": ("--beside 1 --repeats 1 --steps 1", "| one thread | 1 | "),
}
"""Script -> the flags of its smallest run and a part of what it prints; {names} is a file of two categories, {folder}
the folder where it lies."""
IN_TESTS_OF_THEIR_OWN = {
    "independence/labels.py": "test_benchmarks.py",
    "independence/planted_world.py": "test_independence_world.py",
    "independence/study.py": "test_benchmarks.py",
    "independence/tables.py": "test_benchmarks.py",
    "microworld/sweep.py": "test_benchmarks.py",
    "speed/start_up.py": "test_generate_growth.py",
}
REHEARSED = {
    "independence/update_cost.py",
    "speed/align_step.py",
    "speed/full_size.py",
    "speed/generate.py",
    "speed/memory_of_families.py",
}


class InThisProcess:
    """In the place of a pool of processes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __enter__(self) -> "InThisProcess":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, function: Any, *arguments: Any) -> Future:
        future: Future = Future()
        future.set_result(function(*arguments))
        return future


def run(script: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "ProcessPoolExecutor", InThisProcess)
    importlib.import_module("benchmarks." + script.removesuffix(".py").replace("/", ".")).main(arguments)


def test_every_script_is_run_by_a_test():
    scripts = {str(path.relative_to(ROOT / "benchmarks")) for path in (ROOT / "benchmarks").rglob("*.py")}
    scripts = {name for name in scripts if "if __name__" in (ROOT / "benchmarks" / name).read_text()}
    assert scripts == set(SMALLEST) | set(IN_TESTS_OF_THEIR_OWN) | REHEARSED
    for script, file in IN_TESTS_OF_THEIR_OWN.items():
        (test,) = (ROOT / "tests").rglob(file)
        assert Path(script).stem in test.read_text()
    calls = (ROOT / "benchmarks/gpu.sh").read_text()
    assert all(f"benchmarks/{script} " in calls for script in REHEARSED)


@pytest.mark.parametrize("script", SMALLEST)
def test_script_runs_at_its_smallest_size(script, tmp_path, monkeypatch, capfd, warm_python):
    monkeypatch.setattr(sys, "executable", warm_python)
    (tmp_path / "names.txt").write_text("key\nfish\n")
    flags, printed = SMALLEST[script]
    run(script, flags.format(names=tmp_path / "names.txt", folder=tmp_path).split(), monkeypatch)
    assert printed in capfd.readouterr().out
    assert all((tmp_path / name).exists() for name in re.findall(r"{folder}/(\S+)", flags))


def test_the_audits_power_is_printed(monkeypatch, capfd):
    run("audit/floors.py", ["--power", "2", "--images", "48", "--of", "photographs"], monkeypatch)
    assert "\n| 90% linked | against the same objects, 2 | " in capfd.readouterr().out


def test_study_makes_rows_tables_and_pictures(tmp_path, monkeypatch, capsys):
    """Of a plan with one alignment of one update; a second start makes nothing again."""
    ours = {"independence_weight": 1.0, "independence_bank": 16, "steps": 2, "differentiated_steps": 1}
    ours |= {"max_steps": 1, "batch_size": 2, "evaluation_images": 2, "discriminator_warmup_steps": 0}
    plan = {"images_per_category": 4, "seeds": [0], "shared": {}, "ablations": {}}
    plan["alignments"] = {"independence + L_in": ours}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    flags = ["--plan", str(tmp_path / "plan.yaml"), "--output", str(tmp_path / "study")]
    run("independence/study.py", [*flags, "--sets", "independence + L_in", "biased renders"], monkeypatch)
    rows = (tmp_path / "study/results.jsonl").read_text()
    assert len(rows.splitlines()) == 2
    run("independence/study.py", [*flags, "--sets", "biased renders"], monkeypatch)
    assert (tmp_path / "study/results.jsonl").read_text() == rows
    assert "| independence + L_in | 1 | " in capsys.readouterr().out
    run("independence/study.py", [*flags, "--sets", "biased renders", "--pictures", f"{tmp_path}/p.png"], monkeypatch)
    assert (tmp_path / "p.png").read_bytes()[1:4] == b"PNG"


def test_labels_makes_rows_of_unscreened_and_screened_images(tmp_path, monkeypatch, capsys):
    """At its smallest; unscreened images are those of `lbgen generate` without checks, and nothing is made twice."""
    smallest = {"independence_bank": 16, "steps": 2, "differentiated_steps": 1, "batch_size": 2}
    plan = {"images_per_category": 2, "seeds": [0], "updates": [2], "kept_updates": [1]}
    plan |= {"variants": {"recipe": smallest | {"discriminator_warmup_steps": 0}}}
    plan |= {"screenings": {"strict": {"least_label_probability": 0.99, "max_attempts": 2}}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    flags = ["--plan", str(tmp_path / "plan.yaml"), "--output", str(tmp_path / "labels")]
    run("independence/labels.py", flags, monkeypatch)
    written = (tmp_path / "labels/results.jsonl").read_text()
    rows = [json.loads(line) for line in written.splitlines()]
    kinds = [(row["variant"], row["updates"], row["screening"]) for row in rows]
    assert kinds == [("base", 0, "none"), ("base", 0, "strict"), ("recipe", 2, "none"), ("recipe", 2, "strict")]
    assert "| recipe | 2 | strict | 0 | " in capsys.readouterr().out

    config = yaml.safe_load((tmp_path / "labels/recipe-0/images-2-strict/dataset.yaml").read_text())["config"]
    plain = GenerateConfig(**{**config, "screen": (), "output": tmp_path / "plain"})
    generate(plain)
    index = sorted(read_index(tmp_path / "plain").to_pylist(), key=lambda row: row["key"])
    labels = torch.tensor([CATEGORIES.index(row["name"]) for row in index])
    with torch.no_grad():
        seen = load_judge().verdicts(load_images(tmp_path / "plain", [row["file"] for row in index])).category
    right = (seen == labels).double().mean().item()
    assert rows[2]["figures"]["label_accuracy"] == pytest.approx(right)
    assert rows[3]["drawn_again"] == rows[2]["checks"]["0.99"]["rejected"] > 0

    run("independence/labels.py", flags, monkeypatch)
    assert (tmp_path / "labels/results.jsonl").read_text() == written


def test_tables_are_written_to_the_page(tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text("before\n<!-- table: goals -->\nold\n<!-- end of table -->\nafter\n")
    run("independence/tables.py", ["--page", str(tmp_path / "page.md")], monkeypatch)
    text = (tmp_path / "page.md").read_text()
    table = PAGE.read_text().split("<!-- table: goals -->")[1].split("<!-- end of table -->")[0]
    assert text == f"before\n<!-- table: goals -->{table}<!-- end of table -->\nafter\n"


def test_sweep_makes_a_row_and_its_table(tmp_path, monkeypatch, capsys):
    flags = ["--settings", "K 1", "--images-per-category", "2", "--output", str(tmp_path)]
    run("microworld/sweep.py", [*flags, "--max-steps", "1", "--evaluation-images", "2", *TINY_RUN.split()], monkeypatch)
    assert "| K 1, max_steps 1, " in capsys.readouterr().out
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 1


def test_what_a_gpu_will_run_is_rehearsed(tmp_path, warm_python, monkeypatch, capfd):
    """All parts of benchmarks/gpu.sh, as it calls them, on a CPU; memory as it is counted on tensors without data."""
    environment = os.environ | {"PYTHON": warm_python}
    finished = subprocess.run(
        [ROOT / "benchmarks/gpu.sh", "--rehearse", tmp_path / "out"], env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    parts = {path.stem: path.read_text() for path in (tmp_path / "out").iterdir()}
    named = {"machine", "full_size", "align_step", "generate", "presets", "independence", "feed", "tests", "families"}
    assert set(parts) == named
    assert "| lbgen, eager | " in parts["align_step"]
    assert "gradient checkpointing on, in every line" in parts["align_step"]
    assert "| lbgen, compiled | " in parts["generate"]
    assert "| lbgen, fast-deepcache | " in parts["presets"]
    assert "| the paper's, again | " in parts["independence"]
    assert "needs a CUDA device" in parts["tests"]
    flags = ["--families", "pixart-sigma", "--steps", "1", "--generated", "1", "--small"]
    run("speed/memory_of_families.py", flags, monkeypatch)
    counted = capfd.readouterr().out.splitlines()[-1]
    assert counted.startswith("| pixart-sigma | 611 | 4,762 | ") and counted in parts["families"]

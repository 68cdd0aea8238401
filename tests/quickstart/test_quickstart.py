"""All stages on random-weight miniatures, judged by a rule that the test can repeat by hand."""

import json
import sys
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

import lbgen
from lbgen.alignment.config import AlignConfig
from lbgen.cli import main
from lbgen.datasets.index import read_index
from lbgen.errors import UserError
from lbgen.microworld.world import CATEGORIES, HOME, SCENES
from lbgen.quickstart import judging
from lbgen.quickstart.run import QuickstartConfig

run = sys.modules[QuickstartConfig.__module__]  # `lbgen.quickstart` is also the name of the function
FIGURES = ("home_scene_rate", "category_scene_mutual_information_bits", "label_accuracy", "diversity", "quality")


@dataclass
class Verdicts:
    category: torch.Tensor
    scene: torch.Tensor
    features: torch.Tensor


class RuleJudge:
    """The scene is told by the red, the category by the green of the upper left pixel."""

    def verdicts(self, images: torch.Tensor) -> Verdicts:
        levels = (images[:, :, 0, 0] * 255).round().long()
        return Verdicts(levels[:, 1] % len(CATEGORIES), levels[:, 0] % len(SCENES), images.flatten(1)[:, :64])


@pytest.fixture
def miniatures(tiny_sd_folder, tiny_clip_folder, tmp_path, monkeypatch):
    """The recipe made tiny, the judge replaced, the scenes' names short enough for the miniatures."""

    def align_config(config: QuickstartConfig) -> AlignConfig:
        return AlignConfig(
            output=config.folder / "align",
            vocabulary="microworld",
            generator=str(tiny_sd_folder),
            semantics=str(tiny_clip_folder),
            seed=config.seed,
            max_steps=2,
            batch_size=2,
            evaluation_images=2,
            rank=2,
            alpha=2.0,
            learning_rate=0.05,
            scheduler="ddim",
            steps=2,
            differentiated_steps=1,
            logger="none",
        )

    monkeypatch.setattr(run, "align_config", align_config)
    monkeypatch.setattr(judging, "load_judge", RuleJudge)
    (tmp_path / "scenes.yaml").write_text("scene: {template: '{value}', values: [on a, on b]}\n")
    monkeypatch.setattr("lbgen.vocabulary.attributes.MICROWORLD", tmp_path / "scenes.yaml")


def test_the_default_is_the_independent_recipe_shortened():
    shortened, full = (run.align_config(QuickstartConfig(**given)) for given in ({}, {"align_recipe": "independent"}))
    assert (full.max_steps, full.independence_bank, full.discriminator_warmup_steps) == (180, 512, 10)
    assert (shortened.max_steps, shortened.independence_bank, shortened.discriminator_warmup_steps) == (90, 8 * 12, 0)
    assert shortened.weights == full.weights and shortened.learning_rate == full.learning_rate


@pytest.mark.parametrize(
    ("set_by_user", "idle", "earlier", "threads"),
    [(None, 1, 0, 1), (None, 64, 0, 2), (None, None, 0, 2), ("2", 1, 0, 2), (None, 2, 1, 1), (None, 1, 2, 2)],
)
def test_threads(set_by_user, idle, earlier, threads, tmp_path, monkeypatch):
    """As many as cores are idle, at most torch's own number; a quickstart that goes on keeps its number."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_by_user is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", set_by_user)
    if earlier:
        stage = {"seconds": 1.0, "done": False, "threads": earlier}
        (tmp_path / "stages.json").write_text(json.dumps({"align": stage}))
    monkeypatch.setattr(run, "idle_cores", lambda: idle)
    torch.set_num_threads(2)
    try:
        with run.threads_on_idle_cores(tmp_path):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_all_stages(miniatures, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(run, "idle_cores", lambda: 1)
    config = QuickstartConfig(output=tmp_path / "run", images_per_category=2)
    lbgen.quickstart(config)
    assert {stage["threads"] for stage in json.loads((tmp_path / "run/stages.json").read_text()).values()} == {1}
    assert "1 thread of torch" in (tmp_path / "run/report.html").read_text()
    shown = capsys.readouterr().out
    assert "Scene information" in shown and "diverse prompts" in shown and str(tmp_path / "run/report.html") in shown

    summary = json.loads((tmp_path / "run/summary.json").read_text())
    for part in ("base", "aligned", "diverse_prompts"):
        assert all(isinstance(summary[part][name], float) for name in FIGURES)
        assert summary[part]["home_scene_rate"] == pytest.approx(home_rate(tmp_path / "run" / part))
    assert set(summary["diverse_prompts"]) == set(summary["aligned"]) == set(summary["base"])
    stages = {"align", "generate_base", "generate_aligned", "generate_diverse_prompts", "measure"}
    assert set(summary["seconds"]) == stages
    assert (tmp_path / "run/adapter/pytorch_lora_weights.safetensors").is_file()
    assert summary["base"]["quality"] != summary["aligned"]["quality"]
    assert (tmp_path / "run/report.html").read_text().count("<img") == 3 * len(CATEGORIES)

    images = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*/train/*/*.png")}
    main(["quickstart", "--output", str(tmp_path / "run"), "--images-per-category", "2"])
    again = json.loads((tmp_path / "run/summary.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in images} == images
    assert {**again, "seconds": {**again["seconds"], "measure": 0}} == {
        **summary,
        "seconds": {**summary["seconds"], "measure": 0},
    }

    for part in ("base", "aligned", "diverse_prompts"):
        rows = read_index(tmp_path / "run" / part).to_pylist()
        assert summary["drawn_again"][part] == np.mean([len(row["rejections"]) > 0 for row in rows])
        for row in rows:
            seen = tuple(row["found"]) == tuple(row["target"])
            assert row["attempt"] == 3 or (row["label_rank"] == 1 and seen), "accepted against the rule"
    shares = "base {base:.1%}, aligned {aligned:.1%}, diverse prompts".format(**summary["drawn_again"])
    assert shares in (tmp_path / "run/report.html").read_text()
    assert summary["drawn_again"]["base"] > 0.5  # a language space of random weights names one image in twelve

    index = read_index(tmp_path / "run/diverse_prompts").to_pylist()
    asked = Counter((row["name"], row["prompt"].removeprefix(row["name"])) for row in index)
    assert asked == {(name, value): 1 for name in CATEGORIES for value in (" on a", " on b")}

    with pytest.raises(UserError, match="seed"):
        lbgen.quickstart(QuickstartConfig(output=tmp_path / "run", images_per_category=2, seed=1))


def home_rate(folder) -> float:
    """The judge's rule by hand, from the files alone."""
    at_home = []
    for path in folder.glob("train/*/*.png"):
        red = int(np.asarray(Image.open(path))[0, 0, 0])
        at_home.append(SCENES[red % len(SCENES)] == HOME[path.parent.name])
    assert len(at_home) == 2 * len(CATEGORIES)
    return float(np.mean(at_home))


def test_one_image_a_category_is_refused():
    with pytest.raises(UserError, match="--images-per-category 1"):
        QuickstartConfig(images_per_category=1)


def test_a_name_longer_than_the_file_system_takes_is_refused(tmp_path):
    with pytest.raises(UserError, match="--output .*: File name too long; choose a folder"):
        lbgen.quickstart(QuickstartConfig(output=tmp_path / ("x" * 300)))

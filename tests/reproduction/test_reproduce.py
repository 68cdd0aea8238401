"""The whole reproduction at its smallest size, and how it goes on."""

import json
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from command_line import spawned_in

import lbgen
from lbgen.configuration.recipes import resolve
from lbgen.configuration.saved import plain
from lbgen.errors import UserError
from lbgen.microworld.scenes import World, render
from lbgen.microworld.world import CATEGORIES
from lbgen.models.backbones import load_backbone
from lbgen.reproduction.config import ReproduceConfig
from lbgen.reproduction.figures import LEANING, WORTH
from lbgen.reproduction.making import align_config, generate_config, pretrain_config
from lbgen.reproduction.measuring import answers
from lbgen.reproduction.sets import SETS
from lbgen.reproduction.units import DENSE, Unit, all_units, marker, needs

SHORT = {"base": "independent", "independence_bank": 24, "batch_size": 4, "steps": 2, "differentiated_steps": 1}


def small(folder: Path, **changes) -> ReproduceConfig:
    """One backbone on renders and one on the images of an adapter."""
    recipe = folder / "short.yaml"
    recipe.write_text(yaml.safe_dump(SHORT))
    given = {
        "output": folder / "out", "seeds": 1, "sets": ("biased-renders", "independence"), "architectures": ("resnet",),
        "images_per_category": 2, "independence_recipe": str(recipe), "max_steps": 1, "epochs": 1, "test_images": 12,
        "unseen_images": 5, "shots": ("1",), "draws": 1, "datasets": (), "dense": (), "workers": 1,
    }  # fmt: skip
    return ReproduceConfig(**{**given, **changes})


def rows_of(result):
    return [json.loads(line) for line in result.rows.read_text().splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder, configuration and result of the smallest reproduction."""
    folder = tmp_path_factory.mktemp("reproduction")
    config = small(folder)
    return folder, config, lbgen.reproduce(config)


def test_the_smallest_reproduction_writes_rows_and_page(made):
    folder, config, result = made
    rows = rows_of(result)
    assert [(row["set"], row["seed"], row["architecture"]) for row in rows] == [
        ("biased-renders", 0, "resnet"),
        ("independence", 0, "resnet"),
    ]
    expected = {figure.key for figure in (*WORTH, *LEANING)} | {"unseen", "unseen_1shot", "shape_decisions"}
    for row in rows:
        assert row["images"] == 24 and row["values"].keys() == expected | {"texture_decisions"}
        assert all(value is None or value >= -1 for value in row["values"].values())
    text = result.page.read_text()
    assert "| biased renders | 1 |" in text and "One seed, so no test." in text
    for picture in ("radar", "context", "figures"):
        assert (folder / "out" / f"reproduction-{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_answers_are_those_of_timms_own_model(made):
    """timm loads the checkpoint, and names its outputs by the run's config.json."""
    folder, config, _ = made
    run = folder / "out/seeds/0/backbones/biased-renders-resnet"
    settings = json.loads((run / "config.json").read_text())
    architecture, cfg = settings["architecture"], settings["pretrained_cfg"]
    model = timm.create_model(architecture, num_classes=12, checkpoint_path=str(run / "backbone.safetensors")).eval()
    drawn = render(np.arange(24) % 12, 6, World())
    pixels = torch.from_numpy(drawn.images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        outputs = model((pixels - mean) / std).argmax(dim=1)
    named = [cfg.get("label_names", settings.get("label_names"))[index] for index in outputs]
    assert len(set(named)) > 1
    found = answers(load_backbone(str(run)), drawn.images)
    assert [CATEGORIES[category] for category in found] == named


def test_without_one_marker_that_unit_alone_is_done_again(made, capsys):
    folder, config, result = made
    rows = rows_of(result)
    lost = marker(config, Unit("backbone", 0, "biased-renders", "resnet"))
    kept = {path: path.stat().st_mtime_ns for path in lost.parent.iterdir() if path != lost}
    lost.unlink()
    capsys.readouterr()
    assert rows_of(lbgen.reproduce(config)) == rows
    assert {path: path.stat().st_mtime_ns for path in lost.parent.iterdir() if path != lost} == kept
    assert "5 of them done" in capsys.readouterr().out
    with pytest.raises(UserError, match="made with test_images 12, this run asks for 24"):
        lbgen.reproduce(small(folder, test_images=24))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": None}, "row: it is not that of this unit; remove the file"),
        ({"set": "independence"}, "row: it is not that of this unit; remove the file"),
        ({"seed": 1}, "row: it is not that of this unit; remove the file"),
        ({"values": {}}, "row: it is not that of this unit; remove the file"),
        ({"values": {"in_domain": -3}}, "in_domain|values"),
    ],
)
def test_a_marker_that_was_changed_is_refused(made, change, message):
    _, config, _ = made
    path = marker(config, Unit("backbone", 0, "biased-renders", "resnet"))
    before = path.read_text()
    content = json.loads(before)
    path.write_text(json.dumps(content | change if "row" in change else content | {"row": content["row"] | change}))
    try:
        with pytest.raises(UserError, match=message):
            lbgen.reproduce(config)
    finally:
        path.write_text(before)


def test_a_page_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "page.md").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="it is a link, which would be replaced; name the file itself"):
        lbgen.reproduce(small(tmp_path, page=str(tmp_path / "page.md")))
    assert not (tmp_path / "out").exists()


def test_killed_with_its_workers_it_goes_on_and_finds_the_same(made, tmp_path, warm_python):
    """SIGKILL to the first process alone, once a unit is done; each worker is a process of its own."""
    _, _, result = made
    config = small(tmp_path, sets=("biased-renders",), workers=2)
    program = f"import lbgen; lbgen.reproduce(lbgen.{config!r})"  # from standard input
    with subprocess.Popen([warm_python, "-"], stdin=subprocess.PIPE, text=True, cwd=tmp_path) as first:
        first.stdin.write(program)
        first.stdin.close()
        wait_until(lambda: marker(config, Unit("unseen")).is_file() or first.poll() is not None)
        workers = spawned_in(tmp_path)
        first.kill()
    assert len(workers) == 2
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    assert rows_of(lbgen.reproduce(config)) == rows_of(result)[:1]


def with_dense(made: ReproduceConfig, folder: Path) -> ReproduceConfig:
    """A copy, to be gone on with: an epoch of detection and segmentation on all of eight images and on half of them."""
    shutil.copytree(made.folder, folder / "out")
    recipes = {f"{method}_recipe": folder / f"short-{method}.yaml" for method in DENSE}
    for recipe in recipes.values():
        quick = {"epochs": 1, "batch_size": 4, "image_size": 32, "learning_rates": [1e-3], "fraction": [1.0, 0.5]}
        recipe.write_text(yaml.safe_dump(quick))
    asked = {field: str(recipe) for field, recipe in recipes.items()}
    return replace(made, output=str(folder / "out"), dense=DENSE, dense_images=8, **asked)


DENSE_VALUES = {"detection_ap", "detection_ap_50%", "segmentation_miou", "segmentation_miou_50%"}


def test_a_finished_one_of_an_earlier_version_gets_detection_and_segmentation_alone(made, tmp_path, capsys):
    """Its config.yaml has none of their fields, its page no place of their own."""
    _, config, result = made
    now = with_dense(config, tmp_path)
    record = tmp_path / "out/config.yaml"
    earlier = yaml.safe_load(record.read_text())
    added = {"dense", "dense_images", "detection_recipe", "segmentation_recipe"}
    record.write_text(yaml.safe_dump({name: value for name, value in earlier.items() if name not in added}))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/done").iterdir()}
    capsys.readouterr()
    rows = rows_of(lbgen.reproduce(now))

    # Only what was not there is made.
    assert "12 units, 6 of them done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    new = {path.stem for path in (tmp_path / "out/done").iterdir() if path not in kept}
    backbones = [f"{method}-0-{name}-resnet" for method in DENSE for name in now.sets]
    assert new == {"renders-0-detection", "renders-0-segmentation", *backbones}

    # The rows have the values of lbgen transfer besides those that they had.
    for row, before in zip(rows, rows_of(result), strict=True):
        values = {name: row["values"].pop(name) for name in DENSE_VALUES}
        assert row == before
        for method, key in (("detection", "detection_ap"), ("segmentation", "segmentation_miou")):
            folder = tmp_path / f"out/seeds/0/transfer/{row['set']}-resnet/{method}"
            stored = json.loads((folder / "transfer.json").read_text())["backbones"][f"{row['set']}-resnet"][method]
            assert (values[key], values[f"{key}_50%"]) == (stored[method]["value"], stored[f"{method}-50%"]["value"])
    page = (tmp_path / "out/reproduction.md").read_text()
    assert "| ResNet | seeds | detection | detection, 50% | segmentation | segmentation, 50% |" in page
    assert "mean IoU, Semantic FPN fine-tuned on 50% of the training renders" in page

    # From now on their settings are those of the folder.
    with pytest.raises(UserError, match="made with dense_images 8, this run asks for 12"):
        lbgen.reproduce(replace(now, dense_images=12))


def test_without_the_packages_the_rest_is_made_and_named(made, tmp_path, monkeypatch, capsys):
    _, config, result = made
    monkeypatch.setattr("lbgen.reproduction.dense.measuring.find_spec", lambda package: None)
    assert rows_of(lbgen.reproduce(with_dense(config, tmp_path))) == rows_of(result)
    assert "detection is left out: it needs pycocotools; pip install 'lbgen[dense]'" in capsys.readouterr().err


def wait_until(happened, seconds=300):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_every_unit_comes_after_those_that_it_needs_and_adapters_are_shared():
    units = all_units(ReproduceConfig(seeds=2))
    assert len(units) == len(set(units)) == 3 + 2 * (3 + 10 + 3 * 20)
    assert all(units.index(need) < units.index(unit) for unit in units for need in needs(unit))
    shared = [unit.name for unit in units if Unit("align", 1, "independence") in needs(unit)]
    assert shared == ["independence", "independence-diverse-prompts", "independence-screened"]


def test_sets_differ_in_what_their_names_say_alone(tmp_path):
    config = ReproduceConfig(output=tmp_path)
    base = plain(generate_config(config, "base", 3))

    def changed(name):
        other = plain(generate_config(config, name, 3))
        return {key for key in base if other[key] != base[key]} - {"output"}

    screened = {"screen", "screen_semantics", "label_top_k", "least_label_probability"}
    assert changed("paper") == changed("released-code") == changed("independence") == {"adapter"}
    assert changed("base-screened") == screened and changed("independence-screened") == {"adapter", *screened}
    assert changed("independence-diverse-prompts") - changed("diverse-prompts") == {"adapter"}
    assert "balance" in changed("diverse-prompts") and "adapter" not in changed("diverse-prompts")


def test_the_recipe_is_the_default_and_names_recipes_of_the_stages(tmp_path):
    config = resolve(ReproduceConfig, "reproduction", {"output": tmp_path})
    assert plain(config) == plain(ReproduceConfig(output=tmp_path))
    assert align_config(config, "released-code", 0).weights["individual"] == 0
    assert pretrain_config(config, "base", "vit", 0).architecture == "test_vit"
    assert len(SETS) == 10


def test_a_page_of_someone_else_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    config = lbgen.ReproduceConfig(output=str(tmp_path / "out"), page=str(tmp_path / "README.md"))
    with pytest.raises(UserError, match="README.md: it has no markers for tables"):
        lbgen.reproduce(config)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "mine"

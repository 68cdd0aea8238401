"""The programs in examples/, run as they stand, with fewer and smaller calls of the network than a user would want."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from notebooks import execute
from torchvision.datasets import ImageFolder, VOCDetection
from transformers import CLIPModel, CLIPProcessor

import lbgen
from lbgen.datasets import index
from lbgen.generation.run import generate
from lbgen.models.localization import masks

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = {"max_steps": 2, "steps": 2, "differentiated_steps": 1, "batch_size": 2, "rank": 2, "evaluation_images": 2}
MAKE_SMALL = """
import lbgen
from_recipe = lbgen.AlignConfig.from_recipe
lbgen.AlignConfig.from_recipe = lambda recipe, **fields: from_recipe(recipe, **fields | {small})
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs an example in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    from_recipe = lbgen.AlignConfig.from_recipe
    monkeypatch.setattr(
        lbgen.AlignConfig, "from_recipe", lambda recipe, **fields: from_recipe(recipe, **fields | SMALL)
    )

    def run(script: str, *arguments: str) -> dict:
        """Its global variables afterwards."""
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        return runpy.run_path(str(EXAMPLES / script), run_name="__main__")

    return run


def lines(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_own_categories_end_to_end_and_a_timm_model_on_the_dataset(run, capsys):
    run("own_categories.py")
    images = ImageFolder("runs/own-categories/dataset/train")
    assert len(images) == 80 and len(images.classes) == 4
    assert "<html" in Path("runs/own-categories/audit/report.html").read_text()
    run("train_timm.py", "runs/own-categories/dataset", "1")
    assert "of 80 training images right" in capsys.readouterr().out


def test_a_loss_term(run):
    """The term's value is part of the loss, with its weight."""
    run("loss_term.py", "out")
    weights = {"entire": 1.0, "individual": 1.0, "quality": 0.1, "likeness": 0.5}
    updates = [line for line in lines("out/metrics.jsonl") if "loss" in line]
    assert len(updates) == 2
    for line in updates:
        assert line["loss"] == pytest.approx(sum(weight * line[name] for name, weight in weights.items()), abs=1e-5)


def test_a_preference_score(run, tiny_clip_folder):
    """It is part of the loss and equals the cosine of transformers' own CLIP on 8-bit images; gradients reach them."""
    made = run("preference_score.py", str(tiny_clip_folder), "out")
    for line in (line for line in lines("out/metrics.jsonl") if "loss" in line):
        terms = line["entire"] + line["individual"] + 0.1 * line["quality"] + line["dispreference"]
        assert line["loss"] == pytest.approx(terms, abs=1e-5)
    names = lbgen.load_vocabulary("microworld").texts(made["config"].prompt_template)
    images = torch.randint(256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0)).float()
    batch = SimpleNamespace(images=(images / 255).requires_grad_(), category_indices=torch.tensor([2, 0, 7]))
    model, processor = (kind.from_pretrained(tiny_clip_folder) for kind in (CLIPModel, CLIPProcessor))
    texts = [names[index] for index in batch.category_indices]
    inputs = processor(text=texts, images=list(images.byte()), return_tensors="pt", padding=True)
    cosines = model(**inputs).logits_per_image.diagonal() / model.logit_scale.exp()
    value = made["dispreference"](batch)
    assert value.item() == pytest.approx(1 - cosines.mean().item(), abs=1e-6)
    assert torch.autograd.grad(value, batch.images)[0].norm() > 0


def test_a_quality_scorer(run):
    run("quality_scorer.py", "out")
    assert all(1 <= line["quality"] <= 5 for line in lines("out/evaluations.jsonl"))


@pytest.mark.parametrize("logger", ["tensorboard", "wandb"])
def test_pictures_are_logged(run, monkeypatch, logger):
    monkeypatch.setenv("WANDB_MODE", "offline")
    library = pytest.importorskip(logger)
    run("log_pictures.py", "out", logger)
    if logger == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator("out/logs/out").Reload()
        assert events.Images("samples")
    else:
        library.teardown()  # its service may still be writing
        assert list(Path("wandb").rglob("media/images/samples_*.png"))


def test_the_notebook_shows_pictures_and_the_audit(tmp_path, warm_python):
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(EXAMPLES / "own_categories.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit the notebook without its outputs"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(MAKE_SMALL.format(small=SMALL | {"independence_bank": 24})))
    execute(notebook, warm_python, tmp_path)
    shown = [kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})]
    assert shown.count("image/png") == 3 and "text/html" in shown


def test_boxes_for_yolo_and_voc(run, config, monkeypatch):
    """Read by torchvision's VOCDetection, and by YOLO's documented layout, against the boxes of the index."""
    monkeypatch.setattr(masks, "LEAST_CONTRAST", 0.0)
    generate(replace(config, output="made", localize=True, images_per_category=2))
    run("yolo_and_voc.py", "made", "out")
    boxes = {f"train_{row['key']}": row for row in index.read_index("made").to_pylist()}
    read = VOCDetection("out/voc", image_set="train")
    assert len(read) == len(boxes) == 6
    for image, target in read:
        row, (found,) = boxes[target["annotation"]["filename"][:-4]], target["annotation"]["object"]
        x, y, right, bottom = (int(found["bndbox"][each]) for each in ("xmin", "ymin", "xmax", "ymax"))
        assert [x - 1, y - 1, right - x + 1, bottom - y + 1] == row["box"] and found["name"] == row["id"]
        assert target["annotation"]["size"] == {"width": "32", "height": "32", "depth": "3"} and image.size == (32, 32)
    data = yaml.safe_load(Path("out/yolo/data.yaml").read_text())
    pictures = sorted(Path(data["path"], data["train"]).glob("*/*.png"))
    assert len(pictures) == 6
    for picture in pictures:
        row = boxes[f"train_{picture.stem}"]
        path, _, rest = str(picture).rpartition("/images/")  # as its loader replaces the last one
        label, *shares = Path(path, "labels", rest).with_suffix(".txt").read_text().split()
        centre_x, centre_y, width, height = (float(share) * 32 for share in shares)
        assert data["names"][int(label)] == row["id"]
        assert [centre_x - width / 2, centre_y - height / 2, width, height] == pytest.approx(row["box"], abs=1e-3)

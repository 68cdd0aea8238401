"""Backbones on tiny data in the published layouts, against the model called by hand on pictures made by hand."""

import json
import shlex
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from command_line import refused_here
from PIL import Image
from safetensors.torch import save_file

from lbgen.cli import main
from lbgen.errors import UserError
from lbgen.evaluation.bias import measure
from lbgen.evaluation.bias.benchmark import find_folder, find_sources, incompleteness
from lbgen.evaluation.bias.classes import imagenet_ids
from lbgen.evaluation.bias.config import BiasConfig
from lbgen.evaluation.bias.cue_conflict import CATEGORIES
from lbgen.evaluation.bias.imagenet9 import VARIATIONS
from lbgen.evaluation.bias.imagenet_c import ALEXNET
from lbgen.evaluation.bias.run import BENCHMARKS, bias, file_names
from lbgen.models.backbones import load_backbone

MEAN, STD, SIDE = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), 32
DOGS, FISH = "n02085620", "n01440764"
PUBLISHED = [  # a folder and the names of images in it, as each set is published
    ("style-transfer-preprocessed-512/airplane", "airplane1-bicycle2.png", "airplane1-airplane2.png"),
    ("style-transfer-preprocessed-512/dog", "dog1-cat1.png", "dog2-oven1.png", "dog3-clock1.png"),
    ("focus/dog-snow", "1.jpg", "2.jpg"),
    ("focus/cat-grass", "3.jpg"),
    *((f"bg_challenge/{variation}/val/00_dog", "fg_1.JPEG") for variation in VARIATIONS),
    *((f"bg_challenge/{variation}/val/08_fish", "fg_2.JPEG") for variation in VARIATIONS),
    *((f"ImageNet-C/{name}/{severity}/{FISH}", "1.JPEG") for name in ALEXNET for severity in range(1, 6)),
    (f"imagenet-r/{'n01443537'}", "art_0.jpg"),
    (f"imagenet-a/{'n01498041'}", "0.jpg", "1.jpg"),
    (f"sketch/{FISH}", "sketch_0.JPEG"),
    ("objectnet-1.0/images/bicycle", "a.png"),
    ("objectnet-1.0/images/air_freshener", "not_in_imagenet.png"),
]


def picture(seed: int, size=(40, 48)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for seed, (folder, *names) in enumerate(PUBLISHED):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(names):
            picture(10 * seed + number).save(root / folder / name)
    with sqlite3.connect(root / "focus/annotations.db") as database:
        columns = "file_name TEXT PRIMARY KEY, category TEXT, time TEXT, weather TEXT, locations TEXT, humans TEXT"
        database.execute(f"CREATE TABLE annotations ({columns})")
        rows = [
            ("/dog-snow/1.jpg", "dog", "night", "snowing", "grass, snow", "no"),
            ("/dog-snow/2.jpg", "dog", "day", "sunny", "grass", "yes"),
            ("/cat-grass/3.jpg", "cat", "day", "foggy", "grass", "no"),
        ]
        database.executemany("INSERT INTO annotations VALUES (?, ?, ?, ?, ?, ?)", rows)
    return root


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    model = timm.create_model("test_resnet", num_classes=1000).eval()
    torch.nn.init.normal_(model.get_classifier().weight, std=0.5)
    return model


def write_run(folder: Path, model, names) -> Path:
    """As a pre-training run leaves it."""
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "backbone.safetensors")
    settings = {"input_size": [3, SIDE, SIDE], "mean": MEAN, "std": STD, "crop_pct": 0.8, "interpolation": "bicubic"}
    config = {"architecture": "test_resnet", "num_classes": len(names), "label_names": list(names)}
    (folder / "config.json").write_text(json.dumps(config | {"pretrained_cfg": settings}))
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory, model) -> str:
    """Its outputs are in another order than ImageNet's: the last class first."""
    return str(write_run(tmp_path_factory.mktemp("backbones") / "net", model, imagenet_ids()[::-1]))


@pytest.fixture(scope="module")
def config(data, backbone, tmp_path_factory) -> BiasConfig:
    output = tmp_path_factory.mktemp("bias") / "out"
    return BiasConfig(
        backbones=(backbone,), benchmarks=tuple(BENCHMARKS), data=str(data), output=str(output), batch_size=2
    )


@pytest.fixture(scope="module")
def finished(config):
    return bias(config)


def pixels_by_hand(image: Image.Image) -> torch.Tensor:
    """(3, S, S) of the whole picture: shorter side to the input, centre square, normalised."""
    width, height = image.size
    scale = SIDE / min(width, height)
    resized = image.convert("RGB").resize((int(width * scale), int(height * scale)), Image.Resampling.BILINEAR)
    left, top = round((resized.width - SIDE) / 2), round((resized.height - SIDE) / 2)
    pixels = np.asarray(resized.crop((left, top, left + SIDE, top + SIDE)), np.float32) / 255
    normalised = (pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(normalised).permute(2, 0, 1)


def logits_by_hand(model, image: Image.Image) -> np.ndarray:
    """(1000,) in ImageNet's order."""
    with torch.no_grad():
        logits = model(pixels_by_hand(image)[None])[0]
    return logits.double().numpy()[::-1]  # the backbone's last output is ImageNet's first class


def answers_of(config, benchmark) -> list[dict[str, str]]:
    import csv

    with Path(config.output, f"answers/net/{benchmark}.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_cue_conflict_answers_are_the_largest_mean_probability(config, finished, data, model):
    for row in answers_of(config, "cue-conflict"):
        file = data / "style-transfer-preprocessed-512" / row["category"] / row["imagename"]
        logits = logits_by_hand(model, Image.open(file))
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        means = {
            name: np.mean([probabilities[imagenet_ids().index(id)] for id in ids]) for name, ids in CATEGORIES.items()
        }
        assert row["object_response"] == max(means, key=means.__getitem__)
    found = finished.backbones["net"]["cue-conflict"]
    assert (found["images"], found["conflict_images"]) == (5, 4)
    assert found["counts"] == {"images": {"found": 5, "published": 1280}}


def test_focus_answers_and_attributes(config, finished, data, model):
    """The attributes by the paper's table: for dogs night, snow and a place with snow are uncommon, for cats fog."""
    rows = {row["imagename"]: row for row in answers_of(config, "focus")}
    uncommon = {name: [row[f"uncommon_{a}"] for a in ("time", "weather", "location")] for name, row in rows.items()}
    assert uncommon == {
        "dog-snow/1.jpg": ["1", "1", "1"],
        "dog-snow/2.jpg": ["0", "0", "0"],
        "cat-grass/3.jpg": ["0", "1", "0"],
    }
    for name, row in rows.items():
        best = np.argsort(-logits_by_hand(model, Image.open(data / "focus" / name)))[:5]
        assert row["top5"].split() == [imagenet_ids()[place] for place in best] and row["top1"] in row["top5"]
    assert finished.backbones["net"]["focus"]["images"] == {"0": 1, "1": 1, "2": 0, "3": 1}


def test_objectnet_is_cut_by_two_pixels_and_only_its_shared_classes_count(config, finished, data, model):
    (row,) = answers_of(config, "objectnet")
    file = data / "objectnet-1.0/images/bicycle/a.png"
    with Image.open(file) as image:
        inner = image.crop((2, 2, image.width - 2, image.height - 2))
    prepare = measure._preparation(BENCHMARKS["objectnet"], load_backbone(config.backbones[0]))
    torch.testing.assert_close(prepare(str(file)), pixels_by_hand(inner))
    best = logits_by_hand(model, inner).argmax()
    assert row == {"answer": imagenet_ids()[best], "category": "bicycle", "imagename": "a.png"}


def test_variants_are_answered_in_their_own_classes_with_the_backbones_preprocessing(config, finished, data):
    """Against timm's own loading and transform, and the 200 classes of the list."""
    from timm.data import create_transform

    listed = (Path(measure.__file__).parent / "data/imagenet_a.txt").read_text().split()
    folder = Path(config.backbones[0])
    theirs = timm.create_model("test_resnet", num_classes=1000, checkpoint_path=folder / "backbone.safetensors").eval()
    transform = create_transform(
        (3, SIDE, SIDE), interpolation="bicubic", mean=MEAN, std=STD, crop_pct=0.8, is_training=False
    )
    names = list(reversed(imagenet_ids()))
    for row in answers_of(config, "imagenet-a"):
        image = transform(Image.open(data / "imagenet-a" / row["category"] / row["imagename"]).convert("RGB"))
        with torch.no_grad():
            logits = theirs(image[None])[0]
        assert row["answer"] == max(listed, key=lambda id: logits[names.index(id)].item())


def test_every_benchmark_has_figures_counts_and_its_formula(config, finished):
    written = json.loads(finished.figures.read_text())
    found = written["backbones"]["net"]
    assert written["missing"] == {} and found.keys() == BENCHMARKS.keys()
    assert all(each["formula"] and each["counts"] and each["preprocessing"] for each in found.values())
    assert found["imagenet9"]["images"] == dict.fromkeys(VARIATIONS, 2)
    assert found["imagenet-c"]["mean_corruption_error"] is not None and len(found["imagenet-c"]["counts"]) == 75
    assert found["objectnet"]["counts"] == {"images": {"found": 1, "published": 18574}}
    assert written["made_of"]["net"]["weights_sha256"]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_saved_answers_give_the_same_figures(benchmark, config, finished, tmp_path):
    path = Path(config.output, f"answers/net/{benchmark}.csv")
    again = bias(BiasConfig(answers=str(path), benchmarks=(benchmark,), output=str(tmp_path)))
    (figures,) = again.backbones.values()
    left_out = ("counts", "preprocessing", "answers")
    before = {name: value for name, value in finished.backbones["net"][benchmark].items() if name not in left_out}
    assert json.dumps(figures[benchmark]) == json.dumps(before)


def test_the_command_that_comes_next_scores_the_saved_answers(config, finished, capsys):
    program, *argv = shlex.split(finished.next_command)
    main([*argv, "--quiet"])
    (again,) = json.loads(Path(f"{config.output}-scored/bias.json").read_text())["backbones"].values()
    assert program == "lbgen" and capsys.readouterr().err == ""
    assert again["cue-conflict"]["shape_bias"] == finished.backbones["net"]["cue-conflict"]["shape_bias"]


def test_a_run_goes_on_after_the_chunks_that_were_saved(data, config, finished, tmp_path, monkeypatch):
    """An image that cannot be read ends the first run in the fourth of five chunks; the result is as of one run."""
    monkeypatch.setattr(measure, "CHUNK", 1)
    shutil.copytree(data / "style-transfer-preprocessed-512", tmp_path / "data")
    broken = tmp_path / "data/dog/dog2-oven1.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"no image")
    own = replace(config, data=str(tmp_path / "data"), output=str(tmp_path / "out"), benchmarks=("cue-conflict",))
    with pytest.raises(UserError, match=r"dog2-oven1.png: it is not an image that can be read"):
        bias(own)
    chunks = sorted(Path(own.output, "answers/net/cue-conflict.parts").glob("*.csv"))
    assert len(chunks) == 3
    before = [path.stat().st_mtime_ns for path in chunks]
    broken.write_bytes(whole)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(measure.atomic, "remove_tree", lambda folder: None)  # to look at the chunks afterwards
        result = bias(own)
    assert [path.stat().st_mtime_ns for path in chunks] == before
    whole_run = Path(config.output, "answers/net/cue-conflict.csv").read_text()
    assert Path(own.output, "answers/net/cue-conflict.csv").read_text() == whole_run
    assert result.backbones["net"]["cue-conflict"] == finished.backbones["net"]["cue-conflict"]


def test_a_finished_run_is_not_measured_again(config, finished, monkeypatch):
    monkeypatch.setattr("lbgen.models.backbones.load_backbone", None)  # a call would fail
    assert json.dumps(bias(config).backbones) == json.dumps(finished.backbones)


def test_another_configuration_other_images_and_other_weights_are_refused(config, finished, data, model, tmp_path):
    with pytest.raises(UserError, match="was made with benchmarks"):
        bias(replace(config, benchmarks=("focus",)))
    shutil.copytree(data / "imagenet-r", tmp_path / "data")
    more = replace(config, benchmarks=("imagenet-r",), data=str(tmp_path / "data"), output=str(tmp_path / "more"))
    bias(more)
    picture(1).save(tmp_path / "data/n01443537/art_1.jpg")
    with pytest.raises(UserError, match="imagenet-r.csv has 1 images, but --data now has 2 of imagenet-r"):
        bias(more)
    own = write_run(tmp_path / "net", model, imagenet_ids())
    small = replace(config, backbones=(str(own),), benchmarks=("imagenet-r",), output=str(tmp_path / "out"))
    bias(small)
    changed = {name: weight + 0.1 if weight.ndim else weight for name, weight in model.state_dict().items()}
    save_file(changed, own / "backbone.safetensors")
    with pytest.raises(UserError, match="holds answers of other weights"):
        bias(small)


@pytest.mark.parametrize("place", ["imagenet-r", "imagenet-r/n01443537/out", "sketch/n01440764"])
def test_nothing_is_written_into_a_benchmark(config, data, place):
    """A later run would read what is there, or refuse it as no part of the benchmark."""
    before = sorted(data.rglob("*"))
    with pytest.raises(UserError, match=f"--output {data / place}: it lies in the dataset .*; choose another --output"):
        bias(replace(config, benchmarks=("imagenet-r", "imagenet-sketch"), output=str(data / place)))
    assert sorted(data.rglob("*")) == before


def test_a_backbone_of_other_classes_is_refused_before_anything_is_written(config, tmp_path, capsys):
    torch.manual_seed(0)
    few = timm.create_model("test_resnet", num_classes=3)
    names = [*imagenet_ids()[:2], "a"]
    run = write_run(tmp_path / "few", few, names)
    arguments = ["--data", config.data, "--benchmarks", "cue-conflict", "--output", str(tmp_path / "out")]
    told = refused_here(capsys, "bias", str(run), *arguments)
    assert "998 of ImageNet's 1,000 classes" in told and "(n01484850, n01491361, n01494475 and 995 more)" in told
    save_file(few.state_dict(), tmp_path / "few.safetensors")
    own = replace(config, backbones=(f"test_resnet:{tmp_path}/few.safetensors",), output=str(tmp_path / "out"))
    with pytest.raises(UserError, match="the names of its 3 classes are not known"):
        bias(own)
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_named_with_its_page_and_the_others_go_on(data, backbone, tmp_path, capsys):
    shutil.copytree(data / "imagenet-r", tmp_path / "data/imagenet-r")
    out = str(tmp_path / "out")
    own = BiasConfig(backbones=(backbone,), benchmarks=("focus", "imagenet-r"), data=str(tmp_path / "data"), output=out)
    result = bias(own)
    told = capsys.readouterr().err
    assert "no folder focus in it" in told and "https://github.com/priyathamkat/focus; the others continue" in told
    assert "imagenet-r: 1 of the 30,000 published images" in told
    assert list(result.backbones["net"]) == ["imagenet-r"]
    assert json.loads(result.figures.read_text())["missing"].keys() == {"focus"}
    shutil.copytree(data / "focus", tmp_path / "data/focus")
    assert set(bias(own).backbones["net"]) == {"focus", "imagenet-r"}
    with pytest.raises(UserError, match=r"no folder imagenet-a in it with a folder for each of 200 classes"):
        bias(replace(own, benchmarks=("imagenet-a",), output=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("benchmark", "change", "message"),
    [
        ("cue-conflict", ("dog/dog1-cat1.png", "dog/cat1-dog1.png"), "it would be called dog1-TEXTURE1.png"),
        ("imagenet9", ("original/val/08_fish", "original/val/09_cat"), "ImageNet-9 has the folders 00_dog"),
        ("focus", ("dog-snow/2.jpg", "dog-snow/4.jpg"), "it is in annotations.db but not on disk"),
        ("focus", ("dog-snow/2.jpg", "annotations.db"), "it is not FOCUS's database"),
    ],
)
def test_another_layout_is_refused(benchmark, change, message, data, backbone, tmp_path):
    folder = find_folder(BENCHMARKS[benchmark], data, False)
    shutil.copytree(folder, tmp_path / "data")
    before, after = change
    (tmp_path / "data" / before).rename(tmp_path / "data" / after)
    with pytest.raises(UserError) as refused:
        bias(
            BiasConfig(
                backbones=(backbone,),
                benchmarks=(benchmark,),
                data=str(tmp_path / "data"),
                output=str(tmp_path / "out"),
            )
        )
    assert message in str(refused.value) and not (tmp_path / "out").exists()


def test_an_image_that_is_cut_off_is_read_as_far_as_it_goes_in_focus_alone(tmp_path):
    """Its own code reads such files; of another set the download was not whole."""
    picture(0, (64, 64)).save(tmp_path / "a.jpg", quality=95)
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(OSError), Image.open(tmp_path / "a.jpg") as image:
        image.load()
    assert measure._picture(str(tmp_path / "a.jpg"), takes_cut_off=True).size == (64, 64)
    with pytest.raises(UserError, match="get it again"):
        measure._picture(str(tmp_path / "a.jpg"))
    assert [name for name, benchmark in BENCHMARKS.items() if benchmark.takes_cut_off] == ["focus"]


def test_folders_of_backbones_have_names_that_file_systems_take():
    assert file_names(["a/b", "a_b", "A:b", "..", "net.in1k"]) == ["a_b", "a_b-2", "A_b-3", "_", "net.in1k"]


@pytest.mark.parametrize(
    ("benchmark", "lost", "part"),
    [("imagenet9", "bg_challenge/mixed_rand", "mixed_rand"), ("imagenet-c", "ImageNet-C/fog", "fog/3")],
)
def test_a_part_that_is_not_there_is_counted(benchmark, lost, part, data, tmp_path):
    """Otherwise the line about missing images would be empty where all other parts are whole."""
    shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / lost)
    found, whole = (find_sources(root, {benchmark: BENCHMARKS[benchmark]}) for root in (tmp_path / "data", data))
    assert list(found.counts[benchmark]) == list(whole.counts[benchmark])
    assert found.counts[benchmark][part]["found"] == 0 < whole.counts[benchmark][part]["found"]
    assert part in {each.name for each in whole[benchmark]} - {each.name for each in found[benchmark]}


def test_counts_are_said_in_one_line():
    part = {"found": 3, "published": 5}
    assert incompleteness("focus", {"images": part}) == "focus: 3 of the 5 published images"
    assert "1 of 2 parts" in incompleteness("imagenet-c", {"fog/1": part, "fog/2": {"found": 5, "published": 5}})
    assert incompleteness("focus", {"images": {"found": 5, "published": 5}}) == ""

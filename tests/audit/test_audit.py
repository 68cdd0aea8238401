"""The audit as a command: its files, its cache, what it refuses."""

import json
import os
import resource
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import torch
from audited import ATTRIBUTES, photographs, write_image_folder, write_parquet, write_webdataset
from command_line import refused_here
from PIL import Image
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model, ResNetConfig, ResNetModel

import lbgen
from lbgen.audit.comparison import PooledVisionModel
from lbgen.audit.config import AuditConfig
from lbgen.audit.workers.observer import Observer
from lbgen.cli import main
from lbgen.errors import UserError
from lbgen.metrics.information import contingency_table, cramers_v

PROBES = {"background", "border", "color_histogram", "thumbnail", "patch_shuffle", "file_facts"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A biased image folder with broken files, the same images as a WebDataset, a balanced parquet folder; audited."""
    folder = tmp_path_factory.mktemp("audit")
    biased, balanced = photographs(120, 1, scene=0.9), photographs(120, 2)
    broken = write_image_folder(folder / "biased", biased) / "train" / "fish"
    (broken / "cut.png").write_bytes((broken / "0000.png").read_bytes()[:300])
    (broken / "empty.png").write_bytes(b"")
    write_webdataset(folder / "packed", biased)
    write_parquet(folder / "balanced", balanced)
    (folder / "attributes.yaml").write_text(ATTRIBUTES)
    audit(folder, "biased", "packed", "balanced")
    return folder


def audit(folder, *names: str, output: str = "out") -> None:
    main(["audit", *(str(folder / name) for name in names), "--semantics", "microworld", "--output",
          str(folder / output), "--attributes", str(folder / "attributes.yaml"), "--permutations", "99"])  # fmt: skip


def measures(folder) -> dict:
    return json.loads((folder / "out" / "measures.json").read_text())


def is_figure(value: dict) -> bool:
    return set(value) == {"value", "low", "high"} and value["low"] <= value["value"] <= value["high"]


def test_a_disk_that_takes_no_more_is_one_line(folder, tmp_path, capsys):
    """The system refuses to write beyond the limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        flags = ["--semantics", "microworld", "--output", str(tmp_path / "out"), "--permutations", "99"]
        line = refused_here(capsys, "audit", str(folder / "balanced"), *flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large; make room, or choose another place" in line


def test_measures_have_the_names_that_other_programs_rely_on(folder):
    """The list of the issue that defines them."""
    content = measures(folder)
    assert list(content["datasets"]) == ["biased", "packed", "balanced"]
    for found in content["datasets"].values():
        assert found["images"] == 120 and found["categories"] == 12
        assert all(is_figure(found[name]) for name in ("label_agreement", "diversity", "quality", "duplicates"))
        assert set(found["probes"]) >= PROBES and all(map(is_figure, found["probes"].values()))
        scene = found["attributes"]["scene"]
        assert is_figure(scene["normalized_mutual_information"]) and is_figure(scene["cramers_v"])
        assert 0 < scene["p_value"] <= 1
    assert (folder / "out" / "report.html").is_file()


def test_broken_files_are_listed_and_count_in_nothing(folder):
    found = measures(folder)["datasets"]["biased"]
    assert found["broken"] == ["train/fish/cut.png", "train/fish/empty.png"]
    assert measures(folder)["datasets"]["packed"]["broken"] == []


def test_the_same_images_in_another_layout_have_the_same_figures(folder):
    """All but those of files."""
    biased, packed = (measures(folder)["datasets"][name] for name in ("biased", "packed"))
    for part in ("label_agreement", "diversity", "quality", "duplicates"):
        assert biased[part]["value"] == pytest.approx(packed[part]["value"], abs=0.02)
    assert biased["attributes"]["scene"]["cramers_v"]["value"] == packed["attributes"]["scene"]["cramers_v"]["value"]
    same = measures(folder)["comparisons"]["datasets"]["packed"]
    assert same["shared_images"]["value"] == 1
    assert same["frechet_distance"]["value"] == pytest.approx(0, abs=1e-6)
    assert all(same[name]["value"] == pytest.approx(1) for name in ("precision", "recall", "coverage"))


def test_a_difference_is_called_significant_where_there_is_one(folder):
    content = measures(folder)["differences"]
    assert content["balanced"]["probes.border"]["significant"]
    assert not any(found["significant"] for found in content["packed"].values())


def test_parquet_holds_every_figure(folder):
    """Against measures.json, and the number of category and value pairs."""
    lines = pq.read_table(folder / "out" / "measures.parquet").to_pylist()
    for name, found in measures(folder)["datasets"].items():
        mine = [line for line in lines if line["dataset"] == name]
        (border,) = [line for line in mine if line["measure"] == "probes.border"]
        assert {key: border[key] for key in ("value", "low", "high")} == found["probes"]["border"]
        assert len([line for line in mine if line["measure"] == "lift" and line["attribute"] == "scene"]) == 72


def test_names_that_the_model_does_not_know_agree_by_chance(folder):
    """Three of twelve categories get names of unknown words: they tie, so a third of each agrees at most; the page and

    measures.json name them."""
    renamed, names = folder / "renamed", {"fish": "zebra", "key": "unicorn", "cup": "walrus"}
    shutil.copytree(folder / "biased", renamed)
    for old, new in names.items():
        (renamed / "train" / old).rename(renamed / "train" / new)
    audit(folder, "renamed", output="names")
    found = json.loads((folder / "names" / "measures.json").read_text())["datasets"]["renamed"]
    assert found["names"] == {"coinciding": [["unicorn", "walrus", "zebra"]], "unknown": ["unicorn", "walrus", "zebra"]}
    assert found["notes"][0] == "The model does not know unicorn, walrus, zebra"
    assert found["notes"][0] in (folder / "names" / "report.html").read_text()
    told = {each["id"]: each["label_agreement"] for each in found["worst_categories"]}
    assert all(told[name] <= 1 / 3 + 1e-6 for name in names.values())


def test_categories_too_small_for_probes_are_measured_without_them(folder):
    """Three images each, where the probes take five: no image is probed, and all else is there."""
    write_image_folder(folder / "small", photographs(36, 4))
    audit(folder, "small", output="few")
    found = json.loads((folder / "few" / "measures.json").read_text())["datasets"]["small"]
    assert found["images"] == 36 and is_figure(found["diversity"]) and is_figure(found["label_agreement"])
    assert found["probed"]["images"] == 0 and all(each["value"] is None for each in found["probes"].values())
    assert (folder / "few" / "report.html").is_file()


def test_odd_files_and_names_are_named_with_their_cause(folder, tmp_path, capsys):
    """Names that are not UTF-8 in dataset, category, file and output; a PNG whose EXIF is no TIFF; what was skipped."""
    place = tmp_path / os.fsdecode(b"caf\xe9")
    write_image_folder(place, photographs(24, 5))
    fish, exif = place / "train" / "fish", b"Exif\0\0no TIFF header"
    picture = Image.open(fish / "0000.png")
    for suffix in ("png", "webp"):
        picture.save(fish / f"odd.{suffix}", exif=exif)
    (fish / os.fsdecode(b"\xe9.png")).write_bytes(b"")
    (fish / "note.txt").write_text("x")
    picture.save(fish / "more.avif")
    shutil.copytree(place / "train" / "boat", place / "eval" / "boat")
    (place / "train" / "boat").rename(place / "train" / os.fsdecode(b"bo\xe4t"))
    out = tmp_path / os.fsdecode(b"\xe4udit")
    audit(folder, str(place), output=str(out))
    (found,) = json.loads((out / "measures.json").read_bytes())["datasets"].values()
    assert found["broken_why"] == {
        "train/fish/odd.png": "cannot be decoded (damaged EXIF block: not a TIFF file (header b'no TIFF ' not valid))",
        "train/fish/odd.webp": "cannot be decoded (damaged EXIF block: not a TIFF file (header b'no TIFF ' not valid))",
        "train/fish/\\udce9.png": "cannot be decoded (empty file)",
    }
    assert found["skipped"] == {
        "not an image that is read (.txt)": {"count": 1, "first": ["train/fish/note.txt"]},
    }
    assert found["splits"] == {"eval": 2, "train": 25} and found["category_images"]["fish"] == 3
    assert found["category_images"]["bo\\udce4t"] == found["category_images"]["boat"] == 2
    with (out / "measures.parquet").open("rb") as stream:
        assert "bo\\udce4t" in pq.read_table(stream)["category"].to_pylist()
    page = (out / "report.html").read_text("utf-8").replace("<wbr>", "")
    assert "1: not an image that is read (.txt), for example train/fish/note.txt" in page
    assert "Splits: eval 2, train 25; 2 to 3 images a category" in page
    assert "3 broken and 1 skipped" in capsys.readouterr().out


def test_a_second_audit_sees_only_what_is_new(folder, monkeypatch):
    """Twelve new images, one a category."""
    seen, columns = [], Observer.columns
    monkeypatch.setattr(
        Observer, "columns", lambda self, images, *rest: seen.append(images) or columns(self, images, *rest)
    )
    shutil.copytree(folder / "biased", folder / "grown")
    new = write_image_folder(folder / "new", photographs(12, 3)) / "train"
    for image in new.glob("*/*.png"):
        image.rename(folder / "grown" / "train" / image.parent.name / "new.png")
    audit(folder, "grown")
    assert sum(map(len, seen)) == 12 and measures(folder)["datasets"]["grown"]["images"] == 132


def test_an_audit_says_what_it_reads_how_far_it_is_and_what_comes_next(folder, capsys):
    """Off a terminal, with a line for every step; `out` has its cache already, `fresh` none."""
    for output in ("fresh", "out"):
        places = [str(folder / name) for name in ("biased", output)]
        main(["audit", places[0], "--semantics", "microworld", "--output", places[1], "--verbose"])
        shown = capsys.readouterr()
        assert f"dataset biased  {folder}/biased\nlanguage space  microworld\n" in shown.out
        assert ("going on with the cache" in shown.out) == (output == "out") and "\npermutations: 999\n" in shown.out
        assert f"next: open {folder}/{output}/report.html in a browser" in shown.out.splitlines()[-1]
        assert "biased: 122 of 122 images" in shown.err and "probe: " in shown.err and "\r" not in shown.err


def test_two_audits_give_the_same_figures(folder):
    audit(folder, "biased", output="out")
    first = measures(folder)["datasets"]["biased"]
    audit(folder, "biased", output="again")
    again = json.loads((folder / "again" / "measures.json").read_text())["datasets"]["biased"]
    assert first == again


def test_one_audit_at_a_time_writes_to_an_output(folder):
    """Another process holds the lock of the cache, whose rows two writers would mix."""
    holder = "import sys, fcntl; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX, 1); print(); input()"
    command = [sys.executable, "-c", holder, str(folder / "out" / "cache" / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(UserError, match="out: another run is writing there; wait for it"):
            lbgen.audit([folder / "biased"], AuditConfig(folder / "out", semantics="microworld"))
        process.communicate(b"\n")


def test_the_micro_worlds_space_looks_for_what_it_has_learned(folder, tmp_path):
    """Its scenes: their link is that of the scenes which were drawn."""
    main(["audit", str(folder / "balanced"), "--semantics", "microworld", "--output", str(tmp_path)])
    content = json.loads((tmp_path / "measures.json").read_text())
    found = content["datasets"]["balanced"]["attributes"]
    drawn = photographs(120, 2)
    truth = cramers_v(contingency_table(drawn.categories, drawn.factors["scene"], 12, 6))
    assert list(found) == ["scene"] and found["scene"]["cramers_v"]["value"] == pytest.approx(truth)
    assert content["made_with"]["attributes"] == "microworld"


def test_datasets_are_compared_in_a_vision_model_of_ones_choice(folder, tmp_path):
    """A miniature DINOv2: a set is at no distance from itself in another layout; not all of another set is in it."""
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28))
    model.save_pretrained(tmp_path / "dino")
    size = {"height": 28, "width": 28}
    BitImageProcessor(size={"shortest_edge": 28}, crop_size=size).save_pretrained(tmp_path / "dino")
    main(["audit", *(str(folder / name) for name in ("biased", "packed", "balanced")), "--semantics", "microworld",
          "--output", str(tmp_path / "out"), "--features", str(tmp_path / "dino"), "--permutations", "99"])  # fmt: skip
    found = json.loads((tmp_path / "out" / "measures.json").read_text())["comparisons"]
    assert found["features"] == str(tmp_path / "dino")
    packed, balanced = found["datasets"]["packed"], found["datasets"]["balanced"]
    assert packed["frechet_distance"]["value"] == pytest.approx(0, abs=1e-6) and packed["precision"]["value"] == 1
    assert balanced["precision"]["value"] < 1


def test_a_vision_model_without_one_feature_vector_an_image_is_refused(tmp_path):
    """A ResNet, whose configuration has sizes of several stages, and no `hidden_size`."""
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])).save_pretrained(tmp_path)
    BitImageProcessor(size={"height": 28, "width": 28}, do_center_crop=False).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="features .* cannot be loaded: repair the folder .*hidden_size"):
        PooledVisionModel(str(tmp_path), torch.device("cpu"))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("missing", "missing: no such folder; give an image folder"),
        ("biased biased", "given twice; name every dataset folder once"),
        ("empty", "empty: no labelled image in it; give"),
        ("one", "only one category, fish; an audit compares two or more"),
        ("biased --attributes none.yaml", "none.yaml: No such file"),
        ("biased --attributes bad.yaml", "bad.yaml, scene: template 'on' has no {value}"),
        ("biased --attributes long.yaml", 'long.yaml, scene: "forest forest'),
        ("biased --semantics one", "semantics one: the folder has no config.json"),
        ("biased --permutations 5", "--permutations 5: give 99 or more"),
        ("biased --output attributes.yaml", "attributes.yaml is a file; choose a folder"),
        ("", "required: DIR; see lbgen audit --help"),
    ],
)
def test_refusals(folder, capsys, monkeypatch, argv, expected):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "one" / "fish").mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "biased" / "train" / "fish" / "0000.png", folder / "one" / "fish")
    (folder / "bad.yaml").write_text("scene: {template: on, values: [a, b]}")
    long = "forest " * 20
    (folder / "long.yaml").write_text(f'scene: {{template: "{{value}}", values: [sea, "{long}"]}}')
    rest = [] if "--semantics" in argv else ["--semantics", "microworld"]
    rest += [] if "--output" in argv else ["--output", "refused"]
    assert expected in refused_here(capsys, "audit", *argv.split(), *rest)


def test_the_function_is_public(folder):
    assert lbgen.AuditConfig().semantics == "clip-vit-l-14" and callable(lbgen.audit)

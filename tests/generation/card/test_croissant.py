"""Croissant metadata of datasets by hand (tests/handmade.py), judged and read by MLCommons' own mlcroissant."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
from handmade import CATEGORIES, COUNTS, LAYOUTS, expected, make

READ = """
import json, sys
import mlcroissant
from handmade import colour_of

def plain(value):
    return value.decode() if isinstance(value, bytes) else colour_of(value) if hasattr(value, "convert") else int(value)

dataset = mlcroissant.Dataset(sys.argv[1])
read = {
    name: [{key.split("/")[1]: plain(record[key]) for key in record if key.split("/")[1] in columns}
           for record in dataset.records(name)]
    for name, columns in json.loads(sys.argv[2]).items()
}
print(json.dumps({"issues": sorted(dataset.metadata.ctx.issues.errors), "read": read}))
"""


@pytest.mark.parametrize(
    ("layout", "image_format"),
    [
        ("imagefolder", "png"),
        ("imagefolder", "jpeg"),
        ("webdataset", "png"),
        ("webdataset", "webp"),
        ("parquet", "png"),
    ],
)
def test_mlcroissant_reads_images_labels_and_the_index(tmp_path, layout, image_format):
    pytest.importorskip("mlcroissant")
    images = make(tmp_path / "made", layout, image_format)
    columns = {"label-names": ["id", "name"], "image-index": ["key", "label", "seed", "sha256", "split"]}
    columns |= {split: ["image", "label", "split"] for split in COUNTS}
    environment = os.environ | {"CROISSANT_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", READ, str(tmp_path / "made" / "croissant.json"), json.dumps(columns)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["issues"] == []
    assert result["read"]["label-names"] == [{"id": c.id, "name": c.name} for c in CATEGORIES]
    assert sorted(line["sha256"] for line in result["read"]["image-index"]) == sorted(
        hashlib.sha256(image.content).hexdigest() for image in images
    )
    for split in COUNTS:
        records = result["read"][split]
        assert {record["split"] for record in records} == {split}
        near = sorted((tuple(value // 20 for value in colour), label) for colour, label in expected(images, split))
        read = sorted((tuple((v + 5) // 20 for v in record["image"]), record["label"]) for record in records)
        assert read == near


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_are_named_once_and_with_their_hashes(tmp_path, layout):
    """By hand: every @id is unique, and each FileObject's SHA-256 is that of the file."""
    make(tmp_path / "made", layout)
    content = json.loads((tmp_path / "made" / "croissant.json").read_text(encoding="utf-8"))
    nodes = content["distribution"] + content["recordSet"] + [f for r in content["recordSet"] for f in r["field"]]
    ids = [node["@id"] for node in nodes]
    assert len(ids) == len(set(ids))
    objects = [node for node in content["distribution"] if node["@type"] == "cr:FileObject"]
    assert len(objects) == 1 + (layout == "webdataset") * 3
    for node in objects:
        assert node["sha256"] == hashlib.sha256((tmp_path / "made" / node["contentUrl"]).read_bytes()).hexdigest()


def test_the_validate_command_accepts_it(tmp_path):
    pytest.importorskip("mlcroissant")
    make(tmp_path / "made", "imagefolder", "webp")
    program = "from absl import app; from mlcroissant.scripts import validate; app.run(validate.main)"
    command = [sys.executable, "-c", program, "--jsonld", str(tmp_path / "made" / "croissant.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "Done." in done.stderr, done.stderr

"""Labels under another name than `label`: a column that is named, the .json of a WebDataset."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from audited import png

from lbgen.cli import main
from lbgen.datasets.open import open_dataset
from lbgen.errors import UserError

IMAGE = png(np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8))
LINES = [{"coarse_label": "pet", "fine_label": "dog", "number": 7}, {"coarse_label": "food", "fine_label": "pie"}]


def categories(folder: Path, column: str | None) -> list[str]:
    return [record.category or record.fault for record in open_dataset(folder, column).records()]


def write_shard(folder: Path, *jsons: object, cls: str | None = None) -> Path:
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as archive:
        for number, line in enumerate(jsons):
            members = {"png": IMAGE, "json": line if isinstance(line, bytes) else json.dumps(line).encode()}
            members |= {} if cls is None else {"cls": cls.encode()}
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return folder


@pytest.fixture
def table(tmp_path) -> Path:
    """As `datasets` writes CIFAR-100: two ClassLabels, none called `label`."""
    features = datasets.Features(
        image=datasets.Image(),
        fine_label=datasets.ClassLabel(names=["pie", "dog"]),
        coarse_label=datasets.ClassLabel(names=["food", "pet"]),
    )
    rows = [{"image": {"bytes": IMAGE, "path": None}, "fine_label": n, "coarse_label": n} for n in range(2)]
    (tmp_path / "table").mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "table" / "train-00000.parquet")
    return tmp_path / "table"


def test_a_table_has_the_label_that_is_named(table):
    assert categories(table, "fine_label") == ["pie", "dog"]
    assert categories(table, "coarse_label") == ["food", "pet"]
    with pytest.raises(UserError, match="fine_label and coarse_label could be it; name it with --label-column"):
        categories(table, None)
    with pytest.raises(UserError, match="--label-column kind: it has no such column; name one of image, fine_label"):
        categories(table, "kind")
    with pytest.raises(
        UserError, match="--label-column image: it holds struct.*; name a column of whole numbers or texts"
    ):
        categories(table, "image")


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_list_has_the_label_that_is_named(tmp_path, suffix):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(IMAGE)
    if suffix == "csv":
        (tmp_path / "metadata.csv").write_text("file_name,coarse,fine\n0.png,pet,dog\n1.png,food,pie\n")
    else:
        lines = [("0.png", "pet", "dog"), ("1.png", "food", "pie")]
        text = "".join(
            json.dumps(dict(zip(("file_name", "coarse", "fine"), line, strict=True))) + "\n" for line in lines
        )
        (tmp_path / "metadata.jsonl").write_text(text)
    assert categories(tmp_path, "fine") == ["dog", "pie"]
    with pytest.raises(UserError, match="coarse, fine is called `label`; name one with --label-column"):
        categories(tmp_path, None)
    with pytest.raises(UserError, match="--label-column kind: it has no such column; name one of coarse, fine"):
        categories(tmp_path, "kind")


def test_a_webdataset_has_its_labels_in_json(tmp_path):
    """Texts and whole numbers, which are places in labels.json; anything else is a fault."""
    folder = write_shard(tmp_path / "set", {"label": "dog"}, {"label": 0}, {"label": None}, [1], b"{", {"label": 1.5})
    (folder / "labels.json").write_text('[{"id": "n1", "name": "tench"}]')
    assert categories(folder, None) == ["dog", "n1", *["its .json has no label `label`"] * 4]


def test_the_json_of_a_webdataset_before_its_cls_where_a_key_is_named(tmp_path):
    folder = write_shard(tmp_path / "set", *LINES, cls="x")
    assert categories(folder, None) == ["x", "x"]
    assert categories(folder, "fine_label") == ["dog", "pie"]
    assert categories(folder, "number") == ["7", "its .json has no label `number`"]


def test_an_image_folder_has_no_columns(tmp_path, capsys):
    for name in ("ant", "bee"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "a.png").write_bytes(IMAGE)
    with pytest.raises(SystemExit) as left:
        main(["audit", str(tmp_path / "set"), "--label-column", "kind", "--output", str(tmp_path / "out")])
    assert left.value.code == 2
    assert "set is an image folder, whose folders are the labels; drop the flag" in capsys.readouterr().err

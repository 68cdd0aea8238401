"""Every field of every file of a dataset, changed one at a time: verify answers 2 or 3, but for the listed exceptions.

Changes are made as a sender would make them: where an index holds the hash of a file, the hash is changed with it.
"""

import copy
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from folders import with_hash
from PIL import Image, PngImagePlugin
from unverified import is_listed, removed

from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.run import generate
from lbgen.generation.verify import verify

Edit = tuple[str, Callable[[Path], None]]
"""The name of a field, and its change in a dataset folder."""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """The micro world with images drawn again, and near-duplicates; plain ones in containers."""
    folder = tmp_path_factory.mktemp("fields")
    (folder / "names.txt").write_text("cup\nfish\n")
    config = GenerateConfig(
        writers=1, output="x", vocabulary=str(folder / "names.txt"), generator="microworld", scheduler="ddim", steps=2,
        images_per_category=2, batch_size=4, shard_size=2,
    )  # fmt: skip
    screened = replace(
        config, screen=("label", "quality", "blank", "duplicate"), screen_semantics="microworld", label_top_k=1,
        least_quality=3.5, duplicate_bits=20, duplicate_cosine=0.8, max_attempts=3, images_per_category=4, shard_size=4,
    )  # fmt: skip
    configs = {
        "imagefolder": screened,
        "webdataset": replace(config, format="webdataset"),
        "parquet": replace(config, format="parquet"),
        "composed": replace(config, localize=True, compose=2),
    }
    for name, each in configs.items():
        generate(replace(each, output=str(folder / name)))
        assert verify(folder / name).damaged == ()
    return {name: folder / name for name in configs}


# ---- values ----


def other(value: Any) -> Any:
    """A value of the same type."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, list):
        return [other(value[0]), *value[1:]] if value else ["x"]
    return value + "x" if isinstance(value, str) else value + 1 if isinstance(value, int) else value + 0.01


def changes(content: Any, place: str = "") -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Each scalar with another value of its type, and each entry removed, of plain values; of a list the first one."""
    entries = content.items() if isinstance(content, dict) else enumerate(content[:1])
    for key, value in entries:
        inner = f"{place}.{key}"
        yield removed(inner, value), removing(key)
        if isinstance(value, dict | list):
            for name, change in changes(value, inner):
                yield name, within(key, change)
        else:
            yield inner, setting(key, other(value))


def removing(key: Any) -> Callable[[Any], Any]:
    def change(content: Any) -> Any:
        del content[key]
        return content

    return change


def setting(key: Any, value: Any) -> Callable[[Any], Any]:
    def change(content: Any) -> Any:
        content[key] = value
        return content

    return change


def within(key: Any, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda content: setting(key, change(content[key]))(content)


# ---- files ----


def edits_of(folder: Path) -> Iterator[Edit]:
    """Every change of every file; of files of one kind, those of one of them."""
    # What is the same in every format.
    if folder.name == "imagefolder":
        for name in ("plan.json", "labels.json", "duplicates.json", "screening/train-00000.json"):
            yield from edits_of_text(folder, name, json.loads, json.dumps)
        yield from edits_of_text(folder, "dataset.yaml", yaml.safe_load, yaml.safe_dump)
        picture = (folder / "samples.png").read_bytes()
        yield "samples.png cut", lambda copy: (copy / "samples.png").write_bytes(picture[:99])
        yield "samples.png other", lambda copy: Image.new("RGB", (9, 9)).save(copy / "samples.png")
    if folder.name == "webdataset":
        yield from edits_of_text(folder, "_info.json", json.loads, json.dumps)

    if folder.name == "composed":
        yield from edits_of_index(folder)
        yield from edits_of_mask(folder)
        yield from edits_of_text(folder, "annotations/instances_train.json", json.loads, json.dumps)
        yield from edits_of_text(folder, "dataset.yaml", yaml.safe_load, yaml.safe_dump)
        return

    # What depends on it.
    yield from edits_of_text(folder, "croissant.json", json.loads, json.dumps)
    yield from edits_of_text(folder, "README.md", lambda text: yaml.safe_load(text.split("---\n")[1]), headed(folder))
    yield from edits_of_index(folder)
    files = {"imagefolder": edits_of_image, "webdataset": edits_of_archive, "parquet": edits_of_table}
    yield from files[folder.name](folder)


def headed(folder: Path) -> Callable[[Any], str]:
    body = (folder / "README.md").read_text().split("---\n", 2)[2]
    return lambda head: f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n{body}"


def edits_of_text(folder: Path, name: str, read: Callable, write: Callable) -> Iterator[Edit]:
    content = read((folder / name).read_text())
    for place, change in changes(content, name):
        if place.startswith(f"{name}.@context.") and folder.name != "imagefolder":
            continue
        text = write(change(copy.deepcopy(content)))
        yield place, lambda other, text=text: (other / name).write_text(text)


def edits_of_index(folder: Path) -> Iterator[Edit]:
    """Each column of the last row of a part, with its type; and each column removed."""
    name = max(path.name for path in (folder / "index").iterdir())
    table = pq.read_table(folder / "index" / name)
    for field in table.schema:
        rows = table.to_pylist()
        was = rows[-1][field.name]
        rows[-1][field.name] = other(was) if was is not None else 1.0 if pa.types.is_floating(field.type) else "x"
        edited = pa.Table.from_pylist(rows, table.schema)
        yield f"index.{field.name}", lambda copy, edited=edited: pq.write_table(edited, copy / "index" / name)
        less = table.drop_columns([field.name])
        yield f"index.{field.name} removed", lambda copy, less=less: pq.write_table(less, copy / "index" / name)
    for key in table.schema.metadata:
        changed = table.replace_schema_metadata({key: b'{"x": "x"}'})
        yield f"index {key.decode()}", lambda copy, changed=changed: pq.write_table(changed, copy / "index" / name)


def changed_images(content: bytes) -> Iterator[tuple[str, bytes]]:
    """A PNG with each field of its description changed, and with other pixels."""
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        described = json.loads(image.info["Description"])
        for place, change in changes(described):
            yield f"description{place}", png(image, change(copy.deepcopy(described)))
        pixels = np.asarray(image).copy()
    pixels[: len(pixels) // 2] ^= 255
    yield "pixels", png(Image.fromarray(pixels), described)
    yield "size", png(Image.fromarray(pixels[:-8]), described)


def png(image: Image.Image, described: Any) -> bytes:
    text, stream = PngImagePlugin.PngInfo(), io.BytesIO()
    text.add_text("Description", json.dumps(described))
    image.save(stream, "png", pnginfo=text)
    return stream.getvalue()


def edits_of_image(folder: Path) -> Iterator[Edit]:
    path = max(folder.glob("train/*/*.png")).relative_to(folder)
    for name, content in changed_images((folder / path).read_bytes()):
        yield f"image {name}", lambda copy, content=content: with_hash(copy / path, content)
    yield "image removed", lambda copy: (copy / path).unlink()
    yield "image renamed", lambda copy: (copy / path).rename((copy / path).with_name("x.png"))


def edits_of_mask(folder: Path) -> Iterator[Edit]:
    path = max(folder.glob("masks/train/*/*.png")).relative_to(folder)
    pixels = np.asarray(Image.open(folder / path))
    others = {"object's number": pixels[::-1] - (pixels[::-1] == 255), "size": pixels[:-8], "empty": 0 * pixels}
    for name, other in others.items():
        stream = io.BytesIO()
        Image.fromarray(other).save(stream, "png")
        content = stream.getvalue()
        yield f"mask {name}", lambda copy, content=content: with_hash(copy / path, content)
    yield "mask removed", lambda copy: (copy / path).unlink()


def edits_of_archive(folder: Path) -> Iterator[Edit]:
    """Each member removed, renamed, or with other content."""
    with tarfile.open(folder / "train-00000.tar") as archive:
        members = [(member.name, archive.extractfile(member).read()) for member in archive]
    for number, (name, content) in enumerate(members[:3]):
        contents = {"removed": None, "renamed": (f"x{name}", content)}
        if name.endswith(".json"):
            row = json.loads(content)
            contents |= {
                place: (name, json.dumps(change(copy.deepcopy(row))).encode()) for place, change in changes(row)
            }
        elif name.endswith(".cls"):
            contents["other"] = name, b"1"
        else:
            contents |= {what: (name, image) for what, image in changed_images(content)}
        for what, member in contents.items():
            new = [*members[:number], *([member] if member else []), *members[number + 1 :]]
            yield f"tar {name.partition('.')[2]} {what}", lambda copy, new=new: repacked(copy / "train-00000.tar", new)


def repacked(path: Path, members: list[tuple[str, bytes]]) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with_hash(path, stream.getvalue())


def edits_of_table(folder: Path) -> Iterator[Edit]:
    path = Path("data/train-00000.parquet")
    table = pq.read_table(folder / path)
    rows = table.to_pylist()
    cells = {"label": rows[0] | {"label": 1}, "path": rows[0] | {"image": rows[0]["image"] | {"path": "x.png"}}}
    cells |= {
        f"image {name}": rows[0] | {"image": rows[0]["image"] | {"bytes": content}}
        for name, content in changed_images(rows[0]["image"]["bytes"])
    }
    tables = {name: pa.Table.from_pylist([row, *rows[1:]], table.schema) for name, row in cells.items()}
    tables |= {f"{name} removed": table.drop_columns([name]) for name in table.column_names}
    described = json.loads(table.schema.metadata[b"huggingface"])
    for place, change in changes(described):
        metadata = {b"huggingface": json.dumps(change(copy.deepcopy(described))).encode()}
        tables[f"schema{place}"] = table.replace_schema_metadata(metadata)
    for name, new in tables.items():
        yield f"table {name}", lambda copy, new=new: with_hash(copy / path, written(new))


def written(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


# ---- verify ----


def answer(folder: Path) -> int:
    """The exit code of verify."""
    try:
        return 3 if verify(folder).damaged else 0
    except UserError:
        return 2


@pytest.mark.parametrize("layout", ["imagefolder", "webdataset", "parquet", "composed"])
def test_every_changed_field_is_found(made, layout, tmp_path):
    whole, folder = made[layout], tmp_path / layout
    shutil.copytree(whole, folder)
    missed = []
    for name, edit in edits_of(whole):
        edit(folder)
        if answer(folder) not in (2, 3):
            missed.append(name)
        restore(whole, folder)
    unlisted = [name for name in missed if not is_listed(name)]
    assert not unlisted, "\n".join(unlisted)


def test_no_dataset_needs_torch(made):
    """Scores that follow from images and hashes included; one process looks at all of them."""
    program = "import sys; from lbgen import verify; print(*map(verify, sys.argv[1:])); print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program, *made.values()], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "False"


def restore(whole: Path, folder: Path) -> None:
    """Give the copy the files of the original that differ."""
    files = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    for path in [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder) not in files]:
        path.unlink()
    for name in files:
        content = (whole / name).read_bytes()
        if not (folder / name).exists() or (folder / name).read_bytes() != content:
            (folder / name).write_bytes(content)

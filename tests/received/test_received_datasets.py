"""Datasets from someone else: nothing outside them is written, deleted or loaded.

Each test makes such a folder, uses it as its receiver would, and compares the rest of the disk with what it was before.
"""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from folders import link, nested, tree

from lbgen.audit.config import AuditConfig
from lbgen.audit.run import audit
from lbgen.cli import main
from lbgen.errors import UserError
from lbgen.generation.run import generate
from lbgen.generation.verify import verify
from lbgen.runs.storage import open_store

# ---- what a sender changes ----


def edit_index(folder: Path, change: Callable[[dict], dict], shard: int = 0) -> None:
    """Rewrite a part of the index, row by row; the container hashes stay."""
    path = folder / f"index/train-{shard:05d}.parquet"
    table = pq.read_table(path)
    rows = [change(row) for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)


def edit_plan(folder: Path, **changes: object) -> None:
    path = folder / "plan.json"
    path.write_text(json.dumps([{**target, **changes} for target in json.loads(path.read_text())]))


def edit_record(folder: Path, **changes: object) -> None:
    path = folder / "dataset.yaml"
    content = yaml.safe_load(path.read_text())
    content["config"] |= changes
    path.write_text(yaml.safe_dump(content))


def name_a_duplicate(folder: Path) -> None:
    """A round that asks for the first image of shard 0 to be drawn again."""
    row = pq.read_table(folder / "index/train-00000.parquet").to_pylist()[0]
    found = {"0": {row["key"]: row["attempt"]}}
    (folder / "duplicates.json").write_text(json.dumps({"train": [found]}))
    (folder / "croissant.json").unlink(missing_ok=True)


def absolute_key(folder: Path, outside: Path) -> None:
    """An index row with an absolute path as its key, of an image that the next worker takes over."""
    target = str(outside / "known.txt")
    first = pq.read_table(folder / "index/train-00000.parquet").to_pylist()[0]["key"]
    edit_index(folder, lambda row: {**row, "key": target if row["key"] == first else row["key"]})
    (folder / "duplicates.json").write_text(json.dumps({"train": [{"0": {target: 0}}]}))
    (folder / "croissant.json").unlink(missing_ok=True)


def file_elsewhere(folder: Path, outside: Path) -> None:
    name_a_duplicate(folder)
    edit_index(folder, lambda row: {**row, "file": "../victim/known.txt"})


def id_elsewhere(folder: Path, outside: Path) -> None:
    edit_plan(folder, categories=[["../../victim", "cat"], ["a2", "dog"], ["m3", "red fox"]])
    (folder / "index/train-00000.parquet").unlink()


def split_elsewhere(folder: Path, outside: Path) -> None:
    edit_plan(folder, split="../../victim/index/train")
    (folder / "croissant.json").unlink()


def round_elsewhere(folder: Path, outside: Path) -> None:
    (folder / "duplicates.json").write_text(json.dumps({"train": [{"0": {"../../victim/known.txt": 0}, "-1": {}}]}))
    (folder / "croissant.json").unlink()


CHANGES = [absolute_key, file_elsewhere, id_elsewhere, split_elsewhere, round_elsewhere]
LINKS = [
    ".lock", ".staging", ".staging/all", ".staging/verify", "train", "train/z1", "index", "screening",
    "index/train-00000.parquet", "screening/train-00000.json", "plan.json", "dataset.yaml", "labels.json",
    "duplicates.json", "README.md",
]  # fmt: skip


def linked(name: str) -> Callable[[Path, Path], None]:
    def change(folder: Path, outside: Path) -> None:
        target = outside / "linked"
        if name in (".lock", "README.md") or "." in name.rpartition("/")[2][1:]:
            target = outside / "known.txt"
        else:
            target.mkdir()
            (target / "mine").write_text("mine")
        link(folder / name, target)
        (folder / "croissant.json").unlink(missing_ok=True)
        for shard in (1, 2):
            if not (folder / "index").is_symlink():
                (folder / f"index/train-{shard:05d}.parquet").unlink(missing_ok=True)

    change.__name__ = f"linked {name}"
    return change


OPERATIONS = {
    "verify": lambda folder, made: verify(str(folder)),
    "repair": lambda folder, made: verify(str(folder), repair=True, generator=made.generator),
    "resume": lambda folder, made: generate(replace(made, output=str(folder))),
    "grow": lambda folder, made: generate(replace(made, output=str(folder), images_per_category=9)),
    "audit": lambda folder, made: audit([folder], AuditConfig(output=folder.parent / "audit", semantics="microworld")),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("change", [*CHANGES, *map(linked, LINKS)], ids=lambda change: change.__name__)
def test_nothing_outside_a_received_dataset_changes(screened, received, outside, change, operation):
    """The tree beside it, to the byte and the time of change, after every use; refusals are one line."""
    change(received, outside)
    before = tree(outside)
    try:
        OPERATIONS[operation](received, screened)
    except UserError as error:
        assert "\n" not in str(error)
    assert tree(outside) == before


@pytest.mark.parametrize("change", [*CHANGES, linked("index"), linked("train/z1")], ids=lambda change: change.__name__)
def test_a_changed_dataset_is_never_called_whole(received, outside, change):
    change(received, outside)
    with suppress(UserError):
        assert verify(str(received)).damaged


def test_the_resume_that_overwrote_a_file_elsewhere_is_refused_with_the_remedy(screened, received, outside):
    name_a_duplicate(received)
    last = pq.read_table(received / "index/train-00000.parquet").to_pylist()[-1]["key"]
    target = str(outside / "known.txt")
    edit_index(received, lambda row: {**row, "key": target if row["key"] == last else row["key"]})
    with pytest.raises(UserError, match=r"index/train-00000.parquet is not that of the plan: .* --repair"):
        generate(replace(screened, output=str(received)))


@pytest.mark.parametrize("stored", ["[]", "5", "null", nested(), '{"a": 5}'])
def test_a_list_of_files_of_another_shape_is_damage(received, stored):
    path = received / "index/train-00000.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({"lbgen_containers": stored}), path)
    assert verify(str(received)).damaged == ("train-00000: index/train-00000.parquet cannot be read",)


@pytest.mark.parametrize(
    "name, value",
    [("key", ["a"]), ("key", None), ("key", 5), ("attempt", None), ("attempt", "1"), ("sha256", None),
     ("perceptual_hash", 7), ("rejections", [None]), ("rejections", "duplicate"), ("file", b"x")],
)  # fmt: skip
def test_an_index_column_of_another_type_is_damage(received, name, value):
    path = received / "index/train-00000.parquet"
    table = pq.read_table(path)
    column = pa.array([value] * len(table), None if value is not None else table.schema.field(name).type)
    pq.write_table(table.set_column(table.schema.get_field_index(name), name, column), path)
    assert verify(str(received)).damaged == ("train-00000: index/train-00000.parquet cannot be read",)


@pytest.mark.parametrize(
    "stored",
    ["[]", "5", nested(), '{"z1": 5}', '{"z1": {"dropped": "x"}}', '{"z1": {"dropped": -3}}', '{"z1": {"more": 1}}',
     '{"z1": {"dropped": NaN}}', '{"z1": {"reasons": [1]}}', '{"z1": {"reasons": {"a": "b"}}}',
     '{"z1": {"images": true}}', '{"\\u001b[31mz1": {}}', '{"z1": {"reasons": {"\\u001b[31m": 1}}}'],
)  # fmt: skip
def test_screening_counts_of_another_shape_are_damage(received, screened, stored):
    """And nothing of them reaches the terminal or the card."""
    (received / "screening/train-00000.json").write_text(stored)
    (received / "croissant.json").unlink()
    assert verify(str(received)).damaged == ("train-00000: screening/train-00000.json cannot be read",)
    with pytest.raises(UserError, match=r"screening/train-00000.json' cannot be read .* --repair"):
        generate(replace(screened, output=str(received)))


@pytest.mark.parametrize(
    "stored", ["5", nested(), '{"train": 5}', '{"train": [5]}', '{"train": [{"00": {}}]}', '{"train": [{"-1": {}}]}',
               '{"train": [{"0": {"z1_00000": true}}]}']
)  # fmt: skip
def test_duplicate_rounds_of_another_shape_are_refused(received, stored):
    (received / "duplicates.json").write_text(stored)
    with pytest.raises(UserError, match="duplicates.json"):
        verify(str(received))


def test_a_record_of_more_shards_than_can_be_listed_is_refused(received):
    edit_plan(received, images_per_category=500_000)
    edit_record(received, shard_size=1)
    with pytest.raises(UserError, match="dataset.yaml: --shard-size 1: more than 1000000 shards; .*restore the file"):
        verify(received)


@pytest.mark.parametrize("name", ["plan.json", "duplicates.json"])
def test_a_link_is_called_a_link(received, outside, name):
    link(received / name, outside / "known.txt")
    with pytest.raises(UserError, match=f"{name}: it is a link"):
        verify(str(received))


def test_plain_verify_writes_nothing(received):
    (received / ".staging/of-another-run").mkdir(parents=True)
    (received / ".staging/of-another-run/file").write_text("kept")
    (received / "index/train-00001.parquet").unlink()
    before = tree(received)
    assert verify(str(received)).damaged
    assert tree(received) == before


def test_staging_of_object_storage_follows_no_planted_link(monkeypatch, tmp_path):
    """The common temporary folder is everybody's: a link or another's folder under our name is refused."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "victim").mkdir()
    (tmp_path / f"lbgen-{os.getuid()}").symlink_to(tmp_path / "victim")
    store = open_store("hf://datasets/nobody/nothing")
    with pytest.raises(UserError, match="not a folder that only you can write to"):
        store.stage()
    assert list((tmp_path / "victim").iterdir()) == []


@pytest.mark.parametrize("planted", ["train-00000", "train-00000/z1_00000"])
def test_a_staging_folder_that_cannot_be_removed_is_not_used(monkeypatch, tmp_path, outside, planted):
    """Its permissions may be such that its links stay, and images would be written where they point."""
    store = open_store(str(tmp_path / "received"), "all")
    link(store.staging / planted, outside / ("inner" if "/" not in planted else "known.txt"))
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # as for anybody but root
    with pytest.raises(FileExistsError):
        store.stage("train-00000")


# ---- a repair and the sender's record ----


def test_repair_does_not_run_as_the_sender_did(received, screened, monkeypatch):
    """Engine, address, workers: a connection would be refused by this machine, and named."""
    edit_record(received, engine="ray", ray_address="203.0.113.1:6379", workers=64, writers=50, shard_of="0/2")
    (received / "index/train-00001.parquet").unlink()
    assert verify(str(received), repair=True, generator=screened.generator).damaged == ()


@pytest.mark.parametrize(
    "changes, flag",
    [
        ({"generator": "someone/model"}, "--generator"),
        ({"generator": "sd15"}, "--generator"),
        ({"adapter": "/etc"}, "--adapter"),
        ({"screen_semantics": "someone/clip"}, "--screen-semantics"),
        ({"attributes": "/etc/passwd", "balance": ["scene"]}, "--attributes"),
    ],
)
def test_repair_asks_for_the_models_of_a_received_dataset(received, screened, monkeypatch, changes, flag):
    """Before the network, or the folder, is touched."""
    monkeypatch.setattr("lbgen.runs.model_folder._ensure_on_hub", lambda *_: pytest.fail("asked the hub"))
    edit_record(received, **changes)
    (received / "index/train-00001.parquet").unlink()
    given = {} if flag == "--generator" else {"generator": screened.generator}
    with pytest.raises(UserError, match=f"you did not make this dataset.* give {flag}$"):
        verify(str(received), repair=True, **given)


def test_repair_of_ones_own_dataset_needs_no_flag(received, monkeypatch, tmp_path):
    """Made by this user, wherever the copy lies; another user is asked."""
    part = received / "index/train-00001.parquet"
    part.unlink()
    assert verify(str(received), repair=True).damaged == ()
    part.unlink()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user's"))
    with pytest.raises(UserError, match="you did not make this dataset"):
        verify(str(received), repair=True)


# ---- what is shown ----


@pytest.mark.parametrize(
    "name, shown",
    [(b"\x1b[31m.png", r"\x1b[31m.png"), (b"a\nb.png", r"a\nb.png"), (b"\xff.png", r"\udcff.png")],
)
def test_a_file_name_is_shown_escaped(received, capsys, name, shown):
    open(os.fsencode(received) + b"/train/z1/" + name, "w").close()
    line = f"train/z1/{shown}: belongs to no shard; remove it"
    assert verify(str(received)).damaged == (line,)
    assert line in capsys.readouterr().out


def test_a_folder_in_the_place_of_an_image_is_named(received, screened):
    """By the next split too, whose sidecars show images of every split."""
    image = sorted((received / "train/z1").glob("*.png"))[0]
    image.unlink()
    image.mkdir()
    (received / "croissant.json").unlink()
    with pytest.raises(UserError, match=f"{image.name} cannot be read .it is not a regular file"):
        generate(replace(screened, output=str(received), split="val"))


def test_a_message_of_the_command_line_is_shown_escaped(received, capsys):
    edit_record(received, **{"\x1b[31m": 1})
    with pytest.raises(SystemExit):
        main(["verify", str(received)])
    assert r"\x1b[31m" in (shown := capsys.readouterr().err) and "\x1b" not in shown


@pytest.mark.parametrize("content", ["[" * 3000, "a: !!int ''", "a: !!timestamp abc", "a: " + "1" * 5000])
def test_a_record_that_no_reader_of_yaml_reads_is_named(received, content):
    (received / "dataset.yaml").write_text(content)
    with pytest.raises(UserError, match="dataset.yaml.*: not valid YAML"):
        verify(str(received))


def test_continuing_with_ones_own_models_agrees_with_no_other_place(
    received, screened, monkeypatch, tmp_path, tiny_sd_folder
):
    """A sender may record another place for weights that the receiver has too."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "receiver"))
    edit_record(received, generator=f"/tmp/elsewhere/{Path(screened.generator).name}")
    generate(replace(screened, output=str(received)))
    (received / "index/train-00001.parquet").unlink()
    with pytest.raises(UserError, match="you did not make this dataset.* give --generator$"):
        verify(str(received), repair=True)


@pytest.mark.parametrize("state", ["a file", "not writable"])
def test_a_state_folder_that_cannot_be_written_changes_nothing_else(received, screened, monkeypatch, tmp_path, state):
    (tmp_path / "state").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state") if state == "a file" else "/proc/nowhere")
    (received / "index/train-00001.parquet").unlink()
    assert generate(replace(screened, output=str(received))).finished
    (received / "index/train-00001.parquet").unlink()
    with pytest.raises(UserError, match="you did not make this dataset"):
        verify(str(received), repair=True)

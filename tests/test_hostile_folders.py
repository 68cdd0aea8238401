"""Folders from someone else: nothing outside them is written, deleted or loaded, and none of their code runs.

A sender may change anything in a dataset, an adapter, a model or a run folder. Each test makes such a folder, uses it
as its receiver would, and compares the rest of the disk with what it was before.
"""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save_file

from lbgen.alignment import checkpoint
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.run import align
from lbgen.audit.config import AuditConfig
from lbgen.audit.run import audit
from lbgen.cli import main
from lbgen.datasets.open import open_dataset
from lbgen.datasets.records import ImageRecord
from lbgen.datasets.webdataset import content_of, members, opened_tar
from lbgen.errors import UserError
from lbgen.generation.run import generate
from lbgen.generation.verify import verify
from lbgen.models.adapter import METADATA, read
from lbgen.models.generator import load_generator
from lbgen.models.semantics import load_semantics
from lbgen.runs import atomic
from lbgen.runs.storage import open_store


@pytest.fixture(scope="module")
def screened(config, tmp_path_factory):
    """A dataset with a round of near-duplicates, so that its shards are taken over and changed."""
    made = replace(config, output=str(tmp_path_factory.mktemp("screened") / "made"), screen=("duplicate",))
    made = replace(made, screen_semantics="microworld", duplicate_bits=22, duplicate_cosine=0.8, images_per_category=8)
    generate(made)
    assert (Path(made.output) / "duplicates.json").exists()
    return made


@pytest.fixture
def received(screened, tmp_path) -> Path:
    return Path(shutil.copytree(screened.output, tmp_path / "received/dataset"))


@pytest.fixture
def outside(tmp_path) -> Path:
    """What must stay as it is: files beside the received folder, and a folder that links point to."""
    victim = tmp_path / "received/victim"
    (victim / "inner").mkdir(parents=True)
    (victim / "known.txt").write_text("mine")
    (victim / "inner/file").write_text("mine too")
    (victim / "index").mkdir()
    (victim / "index/train-00000.parquet").write_text("of another dataset")
    return victim


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


def link(path: Path, target: Path) -> None:
    """A link in the place of what was there, whose content goes where the link points."""
    if path.is_dir():
        shutil.copytree(path, target, dirs_exist_ok=True)
        shutil.rmtree(path)
    elif path.exists():
        shutil.copy(path, target) if target.is_file() or not target.exists() else None
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


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
    edit_plan(folder, split="../victim/index/train")
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


def tree(folder: Path) -> dict[str, tuple]:
    """Every entry, with its kind, its content and the time of its last change."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        state = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        found[str(path)] = (state.st_mode, state.st_size if content is not None else 0, state.st_mtime_ns, content)
    return found


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


def nested(depth: int = 100_000) -> str:
    return "[" * depth


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
    with pytest.raises(UserError, match=f"you have not made this dataset.* give {flag}$"):
        verify(str(received), repair=True, **given)


def test_repair_of_ones_own_dataset_needs_no_flag(received, monkeypatch, tmp_path):
    """Made by this user, wherever the copy lies; another user is asked."""
    part = received / "index/train-00001.parquet"
    part.unlink()
    assert verify(str(received), repair=True).damaged == ()
    part.unlink()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user's"))
    with pytest.raises(UserError, match="you have not made this dataset"):
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


# ---- the audit's own readers ----


def records_of(folder: Path) -> list[ImageRecord]:
    return list(open_dataset(folder).records())


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir])
def test_only_regular_files_are_read_as_images(received, make):
    """A pipe has no end of waiting, and /dev/zero none at all."""
    image = received / "train/z1/z1_00000.png"
    image.unlink()
    make(image)
    if not image.is_dir():
        faults = {record.key: record.fault for record in records_of(received) if record.fault}
        assert faults == {"train/z1/z1_00000.png": "it is not a regular file"}
    else:
        assert not any(record.fault for record in records_of(received))


def test_no_folder_is_read_twice(received):
    before = [record.key for record in records_of(received)]
    (received / "train/z1/loop").symlink_to("..")
    (received / "train/z1/self").symlink_to(".")
    assert len(records_of(received)) == len(before)


@pytest.mark.parametrize(
    "line", ["5", "[]", nested(), '{"file_name": "a\\u0000b", "label": "x"}', '{"file_name": "\\ud800", "label": "x"}']
)  # fmt: skip
def test_a_list_of_images_of_another_shape_is_a_fault(tmp_path, line):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "label": "b"}\n' + line + "\n")
    try:
        assert records_of(tmp_path)[1].fault == "no file can have this name"
    except UserError as error:
        assert "metadata.jsonl: " in str(error)


@pytest.mark.parametrize(
    "file, content",
    [
        ("labels.json", nested()),
        ("_info.json", nested()),
        ("_info.json", '{"splits": {"a": {"filenames": [], "shard_lengths": "x"}}}'),
    ],
)
def test_descriptions_of_another_shape_are_refused(tmp_path, file, content):
    with tarfile.open(tmp_path / "train-00000.tar", "w") as archive:
        for name, stored in (("a.png", b"x"), ("a.cls", b"9" * 6000)):
            member = tarfile.TarInfo(name)
            member.size = len(stored)
            archive.addfile(member, io.BytesIO(stored))
    assert records_of(tmp_path)[0].category == "9" * 6000
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=f"{file}[:,] "):
        records_of(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.GNUTYPE_SPARSE])
def test_an_archive_reserves_no_memory_for_what_it_claims(tmp_path, kind):
    """Eight terabytes, in the header or as the size of a sparse file."""
    member = tarfile.TarInfo("a.png")
    member.type, member.size = kind, 8 * 10**12
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    if kind == tarfile.GNUTYPE_SPARSE:
        header[124:136], header[483:495] = b"0" * 11 + b"\0", header[124:136]
        header[148:156] = b" " * 8
        header[148:156] = f"{sum(header):06o}\0 ".encode()
    label = tarfile.TarInfo("a.cls")
    (tmp_path / "train-00000.tar").write_bytes(bytes(header) + label.tobuf() + bytes(1024))
    assert all(record.fault or not record.content for record in records_of(tmp_path))
    with pytest.raises(tarfile.TarError), opened_tar(tmp_path / "train-00000.tar") as archive:
        for _, _, found in members(archive):
            content_of(archive, found)


def test_continuing_with_ones_own_models_agrees_with_no_other_place(
    received, screened, monkeypatch, tmp_path, tiny_sd_folder
):
    """A sender may record another place for weights that the receiver has too."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "receiver"))
    edit_record(received, generator=f"/tmp/elsewhere/{Path(screened.generator).name}")
    generate(replace(screened, output=str(received)))
    (received / "index/train-00001.parquet").unlink()
    with pytest.raises(UserError, match="you have not made this dataset.* give --generator$"):
        verify(str(received), repair=True)


@pytest.mark.parametrize("state", ["a file", "not writable"])
def test_a_state_folder_that_cannot_be_written_changes_nothing_else(received, screened, monkeypatch, tmp_path, state):
    (tmp_path / "state").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state") if state == "a file" else "/proc/nowhere")
    (received / "index/train-00001.parquet").unlink()
    assert generate(replace(screened, output=str(received))).finished
    (received / "index/train-00001.parquet").unlink()
    with pytest.raises(UserError, match="you have not made this dataset"):
        verify(str(received), repair=True)


# ---- code from models, adapters and pictures ----


def test_no_code_of_a_semantics_folder_runs(tiny_clip_folder, tmp_path):
    """Not even where somebody answers transformers' question with yes."""
    folder = Path(shutil.copytree(tiny_clip_folder, tmp_path / "clip"))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        path = folder / name
        content = json.loads(path.read_text())
        kinds = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoImageProcessor")
        path.write_text(json.dumps(content | {"auto_map": {kind: "evil.Evil" for kind in kinds}}))
    program = f"from lbgen.models.semantics import load_semantics; load_semantics({str(folder)!r})"
    ended = subprocess.run([sys.executable, "-c", program], input="y\ny\ny\n", capture_output=True, text=True)
    assert not (tmp_path / "ran").exists()
    assert "custom code" not in ended.stdout and "[y/N]" not in ended.stdout + ended.stderr


def test_no_code_of_a_generator_folder_runs(tiny_sd_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_sd_folder, tmp_path / "sd"))
    (folder / "scheduler/evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    index = json.loads((folder / "model_index.json").read_text())
    kinds = (
        ["evil", "Evil"],
        ["transformers", "AutoTokenizer"],
        ["diffusers", "StableDiffusionPipeline"],
        ["diffusers"],
    )
    for kind in kinds:
        (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": kind}))
        with pytest.raises(UserError, match="scheduler is no class of diffusers or transformers"):
            load_generator(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", ["text_encoder", "safety_checker", ""])
def test_a_model_folder_names_no_other_model_to_load(tiny_sd_folder, tmp_path, monkeypatch, place):
    """As transformers does for the base model of an adapter, which may lie on the hub."""
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    folder = Path(shutil.copytree(tiny_sd_folder, tmp_path / "sd"))
    (folder / place).mkdir(exist_ok=True)
    (folder / place / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/model"}))
    with pytest.raises(UserError, match="adapter_config.json: it names another model to load"):
        load_generator(str(folder))
    if place:  # the same where the part is a link
        (folder / place).rename(tmp_path / "part")
        (folder / place).symlink_to(tmp_path / "part")
        with pytest.raises(UserError, match="adapter_config.json: it names another model to load"):
            load_generator(str(folder))


@pytest.mark.parametrize(
    "change",
    [
        {"attn_implementation": "someone/kernel"},
        {"text_config": {"_attn_implementation": {"": "sdpa", "x": "someone/kernel@1"}}},
    ],
)
def test_a_model_folder_names_no_kernel_to_run(tiny_clip_folder, tmp_path, change):
    """As transformers does, from the hub, where the package `kernels` is installed."""
    folder = Path(shutil.copytree(tiny_clip_folder, tmp_path / "clip"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match="config.json: attention 'someone/kernel.* is code from elsewhere"):
        load_semantics(str(folder))


def adapter_with(folder: Path, **changes: object) -> Path:
    """An adapter file whose stored configuration says something else."""
    settings = {"unet.r": 2, "unet.lora_alpha": 2, "unet.target_modules": ["to_q"]}
    settings |= {f"unet.{name}": value for name, value in changes.items()}
    folder.mkdir(exist_ok=True)
    weights = {"unet.mid_block.to_q.lora_A.weight": torch.zeros(2, 4)}
    save_file(weights, folder / "pytorch_lora_weights.safetensors", {METADATA: json.dumps(settings)})
    return folder


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"megatron_core": "evil", "megatron_config": {"a": 1}}, "megatron"),
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"to_q": 7}}, "rank_pattern"),
        ({"something_new": "value"}, "something_new"),
        ({"r": "2"}, "rank"),
        ({"r": 10**30}, "rank"),
        ({"lora_alpha": "nan"}, "alpha"),
        ({"lora_alpha": 0}, "alpha"),
        ({"target_modules": "all-linear"}, "target_modules"),
    ],
)
def test_an_adapter_brings_rank_alpha_and_targets_and_nothing_else(tmp_path, monkeypatch, changes, named):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    folder = adapter_with(tmp_path / "adapter", **changes)
    with pytest.raises(UserError, match=f"pytorch_lora_weights.safetensors, unet.*{named}"):
        read(folder, ("unet",))
    assert not (tmp_path / "ran").exists()


def test_a_setting_at_its_default_is_no_setting(tmp_path):
    """As in the files of earlier versions, which hold all of peft's configuration."""
    folder = adapter_with(tmp_path / "adapter", use_dora=False, megatron_core="megatron.core", rank_pattern={})
    ((settings, _),) = read(folder, ("unet",)).values()
    assert (settings.r, settings.lora_alpha, settings.target_modules) == (2, 2, {"to_q"})


def test_a_picture_is_handed_to_no_other_program(tmp_path, monkeypatch):
    """An EPS called .png goes to Ghostscript, where there is one: a `gs` that says that it ran stands in for it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
    (tmp_path / "bin/gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    for category in ("cup", "fish"):
        folder = tmp_path / f"pictures/{category}"
        folder.mkdir(parents=True)
        (folder / "x.png").write_bytes(eps)
    with pytest.raises(UserError, match="no labelled image in it"):
        audit([tmp_path / "pictures"], AuditConfig(output=tmp_path / "audit", semantics="microworld"))
    assert not (tmp_path / "ran").exists()


# ---- run folders ----


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples", "checkpoints", "adapter", "logs", "config.yaml"])
def test_align_writes_through_no_link(tmp_path, outside, name):
    run = tmp_path / "received/run"
    link(run / name, outside / ("known.txt" if "." in name else "inner"))
    before = tree(outside)
    with pytest.raises(UserError, match=f"run/{name}: it is a link"):
        align(AlignConfig(output=run, vocabulary="microworld", generator="microworld", semantics="microworld"))
    assert tree(outside) == before


@pytest.fixture(scope="module")
def aligned(tiny_sd_folder, tiny_clip_folder, tmp_path_factory) -> AlignConfig:
    """A run of one update, with its folder."""
    output = tmp_path_factory.mktemp("aligned") / "run"
    (output.parent / "names.txt").write_text("cat\ndog\nant\n")
    config = AlignConfig(
        output=output, vocabulary=str(output.parent / "names.txt"), generator=str(tiny_sd_folder),
        semantics=str(tiny_clip_folder), steps=2, differentiated_steps=1, rank=2, alpha=2, max_steps=1, batch_size=2,
        checkpoint_every=1, evaluate_every=1, evaluation_images=3, logger="none",
    )  # fmt: skip
    align(config)
    return config


@pytest.fixture
def received_run(aligned, tmp_path) -> AlignConfig:
    """The run as somebody receives it, who asks for one more update."""
    return replace(aligned, output=Path(shutil.copytree(aligned.folder, tmp_path / "received/run")), max_steps=2)


@pytest.mark.parametrize(
    "change",
    [{"files": 5}, {"files": {"../../../victim/known.txt": 4}}, {"files": {"/etc/hostname": 1}}, {"step": "1"},
     {"step": -1}, {"step": 10**30}, {"step": True}, {"images_per_update": None}, {"vocabulary": 5}],
)  # fmt: skip
def test_a_checkpoints_marker_of_another_shape_is_refused(received_run, change):
    marker = received_run.folder / "checkpoints/step-000001/checkpoint.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | change))
    with pytest.raises(UserError, match="checkpoint"):
        align(received_run)


class Payload:
    """A pickle that runs a program when it is loaded."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.ran),)


@pytest.mark.parametrize("kind", ["pickle", "zip", "other tensors", "cut off"])
def test_no_pickle_of_a_checkpoint_runs(received_run, tmp_path, kind):
    folder = received_run.folder / "checkpoints/step-000001"
    contents = {
        "pickle": lambda path: path.write_bytes(pickle.dumps(Payload(tmp_path / "ran"))),
        "zip": lambda path: torch.save({"optimizer": Payload(tmp_path / "ran")}, path),
        "other tensors": lambda path: torch.save({"optimizer": [1]}, path),
        "cut off": lambda path: path.write_bytes(path.read_bytes()[:1000]),
    }
    progress = checkpoint.saved_progress(folder)
    contents[kind](folder / "state.pt")
    (folder / "checkpoint.json").unlink()
    checkpoint.mark_complete(folder, progress)
    with pytest.raises(UserError, match="step-000001: its state.pt cannot be read"):
        align(received_run)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("line", [b"5", b"{}", b'{"step": "x"}', b"\xff", nested().encode(), b'{"step": null}'])
def test_odd_lines_of_a_run_are_left_out(received_run, line):
    path = received_run.folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + line + b"\n")
    checkpoint.drop_lines_after(path, 1)
    assert [json.loads(text)["step"] for text in path.read_text().splitlines()] == [0, 1]


@pytest.mark.parametrize(
    "name", ["checkpoints/step-9999999", "checkpoints/step-000001/state.pt", "samples/base.safetensors"]
)
def test_align_continues_through_no_link(received_run, outside, name):
    link(received_run.folder / name, outside / ("known.txt" if "." in name else "inner"))
    before = tree(outside)
    with pytest.raises(UserError, match=f"run/{name}: it is a link"):
        align(received_run)
    assert tree(outside) == before


def test_a_temporary_name_is_no_way_out(tmp_path, outside):
    """What stands under the temporary name of a file is removed, not written through."""
    (tmp_path / ".page.html.tmp").symlink_to(outside / "known.txt")
    atomic.write_text(tmp_path / "page.html", "new")
    assert (tmp_path / "page.html").read_text() == "new" and (outside / "known.txt").read_text() == "mine"


def test_an_audits_cache_is_not_written_through_a_link(tmp_path, received, outside):
    (tmp_path / "audit").mkdir()
    link(tmp_path / "audit/cache", outside / "inner")
    before = tree(outside)
    with pytest.raises(UserError, match="audit/cache: it is a link"):
        audit([received], AuditConfig(output=tmp_path / "audit", semantics="microworld"))
    assert tree(outside) == before

"""Nobody's files are written over: an output that holds such names, or lies in a dataset, is refused and left alone."""

import os
from pathlib import Path

import pytest

from lbgen.alignment.config import AlignConfig
from lbgen.alignment.run import align
from lbgen.audit.config import AuditConfig
from lbgen.audit.run import audit
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.run import generate
from lbgen.microworld import export_microworld
from lbgen.quickstart.run import QuickstartConfig, quickstart

NOT_LOADED = {"generator": "/dev/null/no-model"}
"""A model that cannot be loaded: the refusals come before."""


def run(verb: str, output: Path, data: Path) -> None:
    if verb == "align":
        align(AlignConfig(output=output, vocabulary="microworld", **NOT_LOADED))
    elif verb == "audit":
        audit([data], AuditConfig(output=output, semantics="/dev/null/no-model"))
    elif verb == "generate":
        generate(GenerateConfig(output=output, vocabulary="microworld", **NOT_LOADED))
    else:
        quickstart(QuickstartConfig(output=output, images_per_category=2, max_steps=1))


def listing(folder: Path) -> dict[str, bytes | None]:
    """Every entry with its content."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def data(tmp_path_factory, whole) -> Path:
    """Pictures that an audit may read."""
    folder = tmp_path_factory.mktemp("pictures")
    for path in (whole / "train").glob("*/*.png"):
        target = folder / path.relative_to(whole / "train")
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize(
    "verb, name",
    [
        ("align", "metrics.jsonl"), ("align", "checkpoints/mine"), ("align", "adapter/mine"), ("align", "samples/a"),
        ("align", "Adapter/mine"), ("audit", "report.html"), ("audit", "measures.json"), ("audit", "cache/mine"),
        ("audit", "measures.parquet"), ("quickstart", "report.html"), ("quickstart", "base/mine"),
        ("quickstart", "summary.json"),
    ],
)  # fmt: skip
def test_a_folder_with_a_name_that_the_run_writes_is_refused(tmp_path, data, verb, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    before = listing(tmp_path)
    with pytest.raises(
        UserError, match=f"out: it holds {name.partition('/')[0]}, which lbgen {verb} did not write; choose another"
    ):
        run(verb, tmp_path / "out", data)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("verb", ["align", "audit", "quickstart", "generate"])
@pytest.mark.parametrize("place", ["", "sub", "train/z1", "link"])
def test_nothing_is_written_into_a_dataset(tmp_path, data, whole, verb, place):
    """Its readers would take what is there, or count it."""
    if (verb, place) == ("generate", ""):
        pytest.skip("generate goes on there")
    made = tmp_path / "made"
    for path in whole.rglob("*"):
        if path.is_file():
            (made / path.relative_to(whole)).parent.mkdir(parents=True, exist_ok=True)
            (made / path.relative_to(whole)).write_bytes(path.read_bytes())
    output = made / place
    if place == "link":
        output = tmp_path / "link"
        output.symlink_to(made / "train")
    before = listing(tmp_path)
    with pytest.raises(UserError, match="it lies in the dataset .*/made, .*; choose another --output"):
        run(verb, output, data)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("place", [".", "sub/audit", "cat/x"])
def test_an_audit_is_not_written_into_what_it_reads(tmp_path, data, monkeypatch, place):
    """A folder that nobody made with lbgen: its later audits would read the audit's own files."""
    monkeypatch.chdir(data)
    before = listing(data)
    with pytest.raises(UserError, match=f"--output {place}: it lies in the dataset .*; choose another --output"):
        audit([data], AuditConfig(output=place, semantics="/dev/null/no-model"))
    assert listing(data) == before


def test_an_audit_goes_on_in_its_own_folder(tmp_path, data):
    """Interrupted, finished, or without its cache: it comes to the model."""
    for files in (["cache/lock"], ["cache/seen-0123456789abcdef.rows"], ["report.html", "measures.json"]):
        folder = tmp_path / files[0].replace("/", "-")
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text('{"datasets": {}, "definitions": {}, "made_with": {}}')
        with pytest.raises(UserError, match="no-model"):
            audit([data], AuditConfig(output=folder, semantics="/dev/null/no-model"))


def test_an_export_overwrites_only_an_export(tmp_path):
    export_microworld(tmp_path)
    export_microworld(tmp_path)
    (tmp_path / "generator/model_index.json").write_text("mine")
    os.remove(tmp_path / "semantics/config.json")
    before = listing(tmp_path)
    with pytest.raises(UserError, match="model_index.json: lbgen export did not write it; choose another folder"):
        export_microworld(tmp_path)
    assert listing(tmp_path) == before

"""Folders that a dataset's making depends on: named in any way, from any folder, and known by their content."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from folders import contents

from lbgen.errors import UserError
from lbgen.generation.run import generate
from lbgen.generation.verify import verify


@pytest.fixture
def relative(config, tiny_generator, tmp_path, monkeypatch):
    """A configuration whose folders and files are named from the current folder, `tmp_path/here`."""
    here = tmp_path / "here"
    shutil.copytree(config.generator, here / "models/tiny")
    tiny_generator.add_adapter(2, 4.0, ["to_q"])
    tiny_generator.save_adapter(here / "adapter")
    shutil.copytree(config.vocabulary.rpartition("/")[0], here / "names", ignore=shutil.ignore_patterns("whole"))
    (here / "attributes.yaml").write_text("scene:\n  template: 'on {value}'\n  values: [sea, land]\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(here)
    return replace(
        config,
        output=tmp_path / "made",
        vocabulary="names/names.txt",
        generator="models/tiny",
        adapter=Path("adapter"),
        attributes=Path("attributes.yaml"),
        balance=("scene",),
        screen_semantics="microworld",
        max_attempts=1,
        images_per_category=2,
    )


def test_repair_and_resume_do_not_hang_on_the_current_folder(relative, tmp_path, monkeypatch):
    generate(relative)
    before = contents(tmp_path / "made")
    monkeypatch.chdir(tmp_path / "elsewhere")
    index = tmp_path / "made/index/train-00001.parquet"
    index.unlink()
    assert verify(tmp_path / "made", repair=True).damaged == ()
    assert contents(tmp_path / "made") == before
    index.unlink()
    paths = {"vocabulary": "../here/names/names.txt", "generator": "../here/models/../models/tiny"}
    generate(replace(relative, **paths, adapter=Path("../here/adapter"), attributes=Path("../here/attributes.yaml")))
    assert contents(tmp_path / "made") == before


def test_what_has_moved_is_known_by_its_content_and_images_name_no_path(relative, tmp_path):
    generate(relative)
    made = tmp_path / "made"
    before = {name: value for name, value in contents(made).items() if name.startswith("train")}
    assert not [name for name in before if b"models" in (made / name).read_bytes()]
    shutil.move("models/tiny", tmp_path / "elsewhere/tiny")
    (made / "index/train-00001.parquet").unlink()
    moved = replace(relative, generator=str(tmp_path / "elsewhere/tiny"))
    generate(moved)
    assert {name: value for name, value in contents(made).items() if name.startswith("train")} == before
    weights = tmp_path / "elsewhere/tiny/unet/diffusion_pytorch_model.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({name: torch.zeros_like(value) for name, value in load_file(weights).items()}, weights)
    with pytest.raises(UserError, match="made with generator .*/models/tiny, this run asks for .*, which is another"):
        generate(moved)


@pytest.mark.parametrize(
    "field, place", [("generator", "models"), ("adapter", "adapter"), ("attributes", "attributes.yaml")]
)
def test_repair_names_the_field_whose_folder_is_gone(relative, tmp_path, field, place):
    generate(relative)
    index = tmp_path / "made/index/train-00001.parquet"
    index.unlink()
    os.rename(place, f"{place}-moved")
    with pytest.raises(UserError, match=f"made/dataset.yaml, {field}: .*/here/{place}.* is not there; .* --{field}"):
        verify(tmp_path / "made", repair=True)
    moved = {"generator": "models-moved/tiny", "adapter": Path("adapter-moved"), "attributes": f"{place}-moved"}
    assert verify(tmp_path / "made", repair=True, **{field: moved[field]}).damaged == ()

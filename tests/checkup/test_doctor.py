"""What `lbgen doctor` says of a machine: against what the system and the libraries say themselves."""

import hashlib
import shutil
import socket
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import LlamaConfig

from lbgen.checkup import run
from lbgen.checkup.models import DOWNLOADS
from lbgen.cli import main
from lbgen.configuration import extensions
from lbgen.models import registry
from lbgen.models.quality.mplug_owl2 import MPlugOwl2, MPlugOwl2Config

MICROWORLD = ("--generator", "microworld", "--semantics", "microworld")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Any attempt to reach one fails the test."""

    def refused(*_):
        pytest.fail("the network was asked")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


def page(capsys, *argv: str) -> dict[str, str]:
    main(["doctor", *argv])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 24  # a page of the smallest terminal
    return {name: text for name, _, text in (line.partition("  ") for line in lines)}


def missing(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *argv])
    shown = capsys.readouterr()
    assert ended.value.code == 2 and shown.err.count("\n") == 1 and shown.out.startswith("lbgen ")
    return shown.err


def test_a_machine_that_has_everything(capsys, hub, tmp_path):
    shown = {name: text.strip() for name, text in page(capsys, *MICROWORLD, "--output", str(tmp_path)).items()}
    assert shown["generator"] == shown["language space"] == "microworld: comes with lbgen"
    for package in ("torch", "diffusers", "transformers", "peft"):
        assert f"{package} {version(package)}" in shown["libraries"]
    free = shutil.disk_usage(tmp_path).free / 1e9
    assert float(shown["disk, output"].split()[0].replace(",", "")) == pytest.approx(free, rel=0.02)
    assert ("no GPU" in shown.get("device", "")) != torch.cuda.is_available()


def cached(hub: Path, folder: Path) -> str:
    """The folder in the hub's cache as huggingface_hub lays it out; its id there."""
    commit = hashlib.sha1(b"").hexdigest()
    repository = hub / "models--somebody--tiny"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    return "somebody/tiny"


def test_models_in_the_hubs_cache_and_parts_of_them(capsys, hub, tiny_sd_folder):
    name = cached(hub, tiny_sd_folder)
    size = sum(path.stat().st_size for path in tiny_sd_folder.rglob("*") if path.is_file())
    shown = page(capsys, "--generator", name, "--semantics", "microworld")["generator"]
    assert "in the hub's cache" in shown and f"{size / 1e3:.0f} kB" in shown
    next(hub.glob("*/snapshots/*/unet/*.safetensors")).unlink()
    assert "downloaded in part; a run downloads" in page(capsys, "--generator", name)["generator"]


def test_models_that_are_not_of_the_hub(capsys, hub, monkeypatch):
    """Language spaces of open_clip, and extensions, are not looked for in folders and on the hub."""
    monkeypatch.setitem(extensions.REGISTERED["semantics"], "own-space", page)
    monkeypatch.setitem(extensions.REGISTERED["quality"], "own-scorer", page)
    shown = page(capsys, "--generator", "microworld", "--semantics", "own-space", "--quality", "own-scorer")
    assert shown["language space"].strip() == f"own-space: registered {page.__module__}.page"
    assert shown["scorer"].strip() == f"own-scorer: registered {page.__module__}.page"

    monkeypatch.setattr(registry, "find_spec", lambda _: "there is an open_clip")
    name = "open_clip:ViT-B-32/laion2b_s34b_b79k"
    assert (
        page(capsys, "--generator", "microworld", "--semantics", name)["language space"].strip().startswith(f"{name}: ")
    )
    monkeypatch.setattr(registry, "find_spec", lambda _: None)
    assert "pip install open_clip_torch" in missing(capsys, "--generator", "microworld", "--semantics", name)


def test_a_scorer_that_nobody_offers_is_missing(capsys, hub):
    assert "--quality 'antonym' is not known; choose antonyms" in missing(capsys, *MICROWORLD, "--quality", "antonym")


def test_the_size_of_q_align_is_that_of_its_parameters():
    """Counted on a network of the published sizes: LLaMA-2 7B, CLIP ViT-L/14 at 448 pixels, the abstractor."""
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    vision |= {"image_size": 448, "patch_size": 14}
    language = LlamaConfig(vocab_size=32000).to_dict()  # the defaults are those of LLaMA 7B
    config = MPlugOwl2Config(**language, visual_config={"visual_model": vision})
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in MPlugOwl2(config).parameters())
    assert DOWNLOADS["q-future/one-align"] == pytest.approx(2 * parameters, rel=0.005)  # of 2 bytes each


def test_downloads_are_named_with_their_sizes_and_have_to_fit(capsys, hub, monkeypatch):
    monkeypatch.setattr(run, "free_bytes", lambda _: 100 * 10**9)  # of a large disk
    shown = page(capsys)
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5 from the hub, about 4.27 GB" in shown["generator"]
    assert "about 1.71 GB" in shown["language space"] and "scorer" not in shown
    assert "q-future/one-align from the hub, about 16.4 GB" in page(capsys, "--quality", "q-align")["scorer"]
    monkeypatch.setattr(run, "free_bytes", lambda _: 5 * 10**9)  # of a small disk
    assert "1 thing missing: room for 5.98 GB of models; set HF_HOME" in missing(capsys)


def test_the_package_of_rounded_weights_is_missing_before_they_are_there(capsys, hub, monkeypatch):
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    assert "the package bitsandbytes is not installed" in missing(capsys, "--quality", "q-align-nf4")


def test_what_cannot_be_had_offline_is_missing(capsys, hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    shown = missing(capsys, "--generator", "microworld")
    assert "1 thing missing: clip-vit-l-14: HF_HUB_OFFLINE is set; unset it, or give a folder" in shown


def test_a_folder_that_cannot_be_loaded_is_missing_by_its_reason(capsys, hub, tmp_path):
    (tmp_path / "nothing").mkdir()
    shown = missing(capsys, "--generator", str(tmp_path / "nothing"), "--semantics", "microworld")
    assert "the folder has no model_index.json" in shown
    assert "no such folder, and no hub id" in missing(capsys, "--generator", "a/b/c", "--semantics", "microworld")


def test_a_place_where_no_run_can_write_is_missing(capsys, hub, tmp_path):
    (tmp_path / "file").touch()
    shown = missing(capsys, *MICROWORLD, "--output", str(tmp_path / "file/run"))
    assert f"1 thing missing: --output {tmp_path}/file/run: {tmp_path}/file is a file; choose a folder" in shown


def test_libraries_that_are_absent_or_too_old_are_missing(capsys, hub, monkeypatch):
    monkeypatch.setattr(run, "requires", lambda _: ["torch>=99", "no-such-package", 'ray>=2; extra == "ray"'])
    shown = missing(capsys, *MICROWORLD)
    assert "2 things missing: torch>=99: pip install 'torch>=99'; no-such-package: pip install" in shown

"""A merged checkpoint in plain diffusers: the same image as the generator with its adapter."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from miniatures import write_stable_diffusion_xl
from trajectories import PROMPTS, STEPS, adapted, draws, images_of

from lbgen.alignment.config import AlignConfig
from lbgen.alignment.run import align
from lbgen.errors import UserError
from lbgen.exports.config import ExportMergedConfig
from lbgen.exports.merged import MADE_BY, Base, ensure_trained_on, export_merged
from lbgen.models.checkpoints import forms
from lbgen.models.generator import load_generator
from lbgen.runs.identity import Identity
from lbgen.runs.model_folder import SAFETY_CHECKER


@pytest.fixture(scope="module")
def trained(tiny_config: AlignConfig, tmp_path_factory: pytest.TempPathFactory) -> AlignConfig:
    """A run of rank 2 and alpha 3, whose generator lies where only this run uses it."""
    folder = tmp_path_factory.mktemp("trained")
    model = shutil.copytree(tiny_config.generator, folder / "model")
    config = replace(tiny_config, generator=str(model), output=str(folder / "run"), alpha=3, max_steps=1)
    align(config)
    return config


def images_of_pipeline(folder: Path) -> torch.Tensor:
    """By the checkpoint's own scheduler; nothing is said but the folder."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    noise, rngs = draws()
    options = {"num_inference_steps": STEPS, "guidance_scale": 2.0, "output_type": "pt"}
    return pipeline(PROMPTS, latents=noise, generator=rngs, **options).images


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_the_folder_draws_what_the_generator_draws_with_its_adapter(
    family: str, tiny_sd_folder: Path, tmp_path: Path
) -> None:
    model = tiny_sd_folder if family == "sd" else write_stable_diffusion_xl(tmp_path / "model")
    generator = adapted(model, text_encoder=True, guidance_scale=2.0)
    generator.save_adapter(tmp_path / "adapter")
    made = export_merged(ExportMergedConfig(tmp_path / "adapter", tmp_path / "merged", generator=str(model)))
    assert not any(str(tmp_path) in path.read_text() for path in made.rglob("*.json") if path.name != MADE_BY)
    ours = images_of(generator)
    torch.testing.assert_close(images_of_pipeline(made), ours.clamp(0, 1), rtol=1e-3, atol=1e-4)
    again = images_of(load_generator(str(made), guidance_scale=2.0))
    torch.testing.assert_close(again, ours, rtol=1e-3, atol=1e-4)
    assert (ours - images_of(load_generator(str(model), guidance_scale=2.0))).abs().max() > 0.01


def test_a_run_says_which_generator_it_belongs_to(trained: AlignConfig, tmp_path: Path) -> None:
    """Against the adapter loaded by hand; an empty folder may be there."""
    (tmp_path / "merged").mkdir()
    made = export_merged(ExportMergedConfig(trained.folder, tmp_path / "merged"))
    generator = load_generator(trained.generator)
    generator.load_adapter(trained.folder / "adapter")
    torch.testing.assert_close(images_of_pipeline(made), images_of(generator).clamp(0, 1), rtol=1e-4, atol=2e-5)
    said = (made / "lbgen.json").read_text()
    assert json.loads(said)["generator"] == "model" and "/" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_what_cannot_be_merged_is_one_line_and_writes_nothing(trained: AlignConfig, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained.folder, tmp_path / "run"))
    before = sorted(tmp_path.rglob("*"))

    def refusal(output: str = "out", generator: str | None = None) -> str:
        with pytest.raises(UserError) as caught:
            export_merged(ExportMergedConfig(run, tmp_path / output, generator=generator))
        assert "\n" not in str(caught.value) and sorted(tmp_path.rglob("*")) == before
        return str(caught.value)

    assert "it lies in the run folder" in refusal("run")
    assert "it holds other files; choose a new folder" in refusal(str(Path(trained.generator)))
    assert "was trained on other weights than generator microworld has now" in refusal(generator="microworld")
    config = run / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace(f"generator: {trained.generator}", "generator: someone/model"))
    assert "names generator someone/model, which is not on this machine; give --generator someone/model" in refusal()
    config.unlink()
    before.remove(config)
    assert "no config.yaml in it that names a generator; give --generator" in refusal()


def test_of_a_single_file_also_what_the_folder_adds_must_be_the_same(tiny_sd_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sd_folder, tmp_path / "model")
    file = Path(shutil.copy(folder / "unet/diffusion_pytorch_model.safetensors", folder / "unet.safetensors"))
    recorded = Identity(forms.hashes(str(file), None, None, None, SAFETY_CHECKER), versions=())
    (tmp_path / "provenance.json").write_text(json.dumps(recorded.to_plain()))
    base = Base(str(file), None, None)
    ensure_trained_on(tmp_path, base)
    scheduler = folder / "scheduler/scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("0.012", "0.013"))
    with pytest.raises(UserError, match=r"than generator .*unet.safetensors has now \(generator_config_sha256 v2:"):
        ensure_trained_on(tmp_path, base)


def test_an_export_that_fails_leaves_nothing(trained: AlignConfig, tmp_path: Path, monkeypatch) -> None:
    """As on a disk that takes no more while the checkpoint is written."""

    def fails(pipeline: DiffusionPipeline, folder: Path) -> None:
        folder.mkdir()
        (folder / "model_index.json").write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lbgen.models.checkpoints.written.write_pipeline", fails)
    with pytest.raises((OSError, UserError), match="No space left"):
        export_merged(ExportMergedConfig(trained.folder, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []

"""Stable Diffusion checkpoints against diffusers' own pipeline, and the ones that are refused."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from trajectories import adapted, gradients_of, images_of, images_of_diffusers, plain

from lbgen.errors import UserError
from lbgen.models.families.stable_diffusion import SCHEDULERS
from lbgen.models.generator import Generator, load_generator


@pytest.mark.parametrize("scheduler", [None, *SCHEDULERS])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    "guidance", [{"guidance_scale": 2.0}, {"guidance_scale": 7.5, "guidance_rescale": 0.7}, {"guidance_scale": 0.5}]
)
def test_sampling_equals_the_diffusers_pipeline(
    scheduler: str | None,
    prediction: str,
    guidance: dict[str, float],
    tiny_sd_folder: Path,
    tiny_sd_v_folder: Path,
) -> None:
    folder = tiny_sd_folder if prediction == "epsilon" else tiny_sd_v_folder
    pipeline = plain(folder)
    if scheduler is not None:
        kind, settings = SCHEDULERS[scheduler]
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **settings)
    assert pipeline.scheduler.config.prediction_type == prediction
    ours = images_of(load_generator(str(folder), scheduler=scheduler, **guidance))
    torch.testing.assert_close(ours.clamp(0, 1), images_of_diffusers(pipeline, **guidance), rtol=1e-4, atol=2e-5)
    assert ours.std() > 0.05


def test_a_checkpoints_own_scheduler_may_scale_the_networks_input(tiny_sd_folder: Path, tmp_path: Path) -> None:
    """Euler's divides the latents by their noise level, and starts from noise of another scale."""
    folder = Path(shutil.copytree(tiny_sd_folder, tmp_path / "euler"))
    EulerDiscreteScheduler.from_config(plain(folder).scheduler.config).save_pretrained(folder / "scheduler")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("PNDMScheduler", "EulerDiscreteScheduler"))
    ours, theirs = images_of(load_generator(str(folder))), images_of_diffusers(plain(folder), guidance_scale=2.0)
    torch.testing.assert_close(ours.clamp(0, 1), theirs, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_to_single(dtype: torch.dtype, tiny_sd_folder: Path) -> None:
    """Images and gradients against float32; the frozen weights are stored in half, the adapter is not."""
    half, single = adapted(tiny_sd_folder, dtype=dtype), adapted(tiny_sd_folder)
    assert half.family.unet.conv_in.weight.dtype == dtype
    assert (images_of(half) - images_of(single)).abs().mean() < 0.02
    ours, theirs = (torch.cat([g.flatten() for g in gradients_of(generator)]) for generator in (half, single))
    assert ours.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.95


def test_optimizing_changes_no_image(tiny_sd_folder: Path) -> None:
    generator = load_generator(str(tiny_sd_folder))
    before = images_of(generator)
    generator.optimize()
    torch.testing.assert_close(images_of(generator), before, rtol=1e-4, atol=1e-5)


def test_images_are_never_clamped(tiny_generator: Generator) -> None:
    images = tiny_generator.decode(40 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)))
    raw = tiny_generator.family.vae.decode(torch.zeros(1, 4, 8, 8)).sample
    assert images.min() < 0 and images.max() > 1
    torch.testing.assert_close(tiny_generator.decode(torch.zeros(1, 4, 8, 8)), raw / 2 + 0.5)


# -- what a user can get wrong


@pytest.fixture
def broken(tiny_sd_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_sd_folder, tmp_path / "broken"))


def refusal(folder: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        load_generator(str(folder))
    message = str(caught.value)
    assert message.startswith(f"generator {folder}") and "\n" not in message
    return message


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path, tiny_clip_folder: Path) -> None:
    assert "has no model_index.json" in refusal(tmp_path)
    assert "has no model_index.json" in refusal(tiny_clip_folder)


def test_a_name_that_leads_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "there is no such folder; check the hub id" in refusal(tmp_path / "nothing")
    assert "there is no such folder; check the hub id" in refusal("nobody/nothing")


def test_another_kind_of_pipeline_is_refused(broken: Path) -> None:
    index = broken / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableDiffusionXLPipeline"))
    known = "StableDiffusionPipeline (Stable Diffusion 1.x and 2.x)"
    expected = f"generator {broken} is a StableDiffusionXLPipeline, which lbgen cannot read; give one of: {known}"
    assert refusal(broken) == expected
    index.write_text("{}")
    assert f"give one of: {known}" in refusal(broken)


@pytest.mark.parametrize(
    ("part", "name"),
    [("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")],
)
def test_damaged_weights_are_refused(part: str, name: str, broken: Path) -> None:
    path = broken / part / f"{name}.safetensors"
    weights = load_file(path)
    lost = sorted(weights)[0]
    save_file({key: value for key, value in weights.items() if key != lost}, path, metadata={"format": "pt"})
    assert f"{part} lacks the weight {lost}" in refusal(broken)
    path.write_bytes(path.read_bytes()[:1000])
    refusal(broken)
    path.unlink()
    refusal(broken)


def test_weights_in_pickle_are_refused(broken: Path) -> None:
    path = broken / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    assert "save it again with safetensors" in refusal(broken)


def test_an_unknown_scheduler_is_refused(tiny_sd_folder: Path) -> None:
    with pytest.raises(UserError, match="--scheduler euler: not known; choose one of ddpm, ddim, pndm, dpm"):
        load_generator(str(tiny_sd_folder), scheduler="euler")


def test_a_size_between_latents_is_refused(tiny_generator: Generator) -> None:
    assert tiny_generator.default_size == (32, 32)
    assert tiny_generator.latent_shape(32, 48) == (4, 8, 12)
    with pytest.raises(UserError, match="image size 30x32: height and width must be multiples of 4"):
        tiny_generator.latent_shape(30, 32)


def test_a_prompt_that_would_be_cut_is_refused(tiny_generator: Generator) -> None:
    assert tiny_generator.token_limit == 16
    assert tiny_generator.count_tokens("photo of x") == 5  # both marks included
    with pytest.raises(
        UserError, match='prompt: "abcdefghijklmnop" is 18 tokens long, the text encoder reads 16; shorten it'
    ):
        tiny_generator.encode(["fish", "abcdefghijklmnop"])

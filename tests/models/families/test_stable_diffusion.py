"""Stable Diffusion checkpoints against diffusers' own pipeline, and the ones that are refused."""

import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from trajectories import adapted, gradients_of, images_of, images_of_diffusers, one_image_of_both, plain
from transformers import BertConfig, BertModel

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


def test_one_image_without_guidance_is_the_pipelines_to_the_bit(tiny_sd_folder: Path) -> None:
    """The arithmetic is the same there."""
    ours, theirs = one_image_of_both(load_generator(str(tiny_sd_folder), guidance_scale=1.0), plain(tiny_sd_folder))
    assert torch.equal(ours.clamp(0, 1), theirs)


@pytest.mark.parametrize(
    "kind",
    ["EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", "KDPM2Discrete", "DPMSolverSinglestep",
     "DEISMultistep", "UniPCMultistep"],
)  # fmt: skip
def test_a_checkpoints_own_scheduler_is_any_that_diffusers_calls_compatible(
    kind: str, tiny_sd_folder: Path, tmp_path: Path
) -> None:
    """Euler's divides the latents by their noise level, and starts from noise of another scale."""
    name = f"{kind}Scheduler"
    pipeline = plain(tiny_sd_folder)
    assert name in {compatible.__name__ for compatible in pipeline.scheduler.compatibles}
    folder = Path(shutil.copytree(tiny_sd_folder, tmp_path / "own"))
    getattr(diffusers, name).from_config(pipeline.scheduler.config).save_pretrained(folder / "scheduler")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("PNDMScheduler", name))
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
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "KandinskyPipeline"))
    known = "StableDiffusionPipeline (Stable Diffusion 1.x and 2.x), StableDiffusionXLPipeline (Stable Diffusion XL)"
    expected = f"generator {broken} is a KandinskyPipeline, which lbgen cannot read; give one of: {known}"
    assert refusal(broken).startswith(expected)
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
    refused = refusal(broken)
    assert "unet has its weights only as diffusion_pytorch_model.bin, which may run code and is never loaded" in refused


def test_weights_of_a_variant_are_refused(broken: Path) -> None:
    """diffusers writes such files with `save_pretrained(..., variant="fp16")`, split into several if they are large."""
    plain = StableDiffusionPipeline.from_pretrained(broken)
    half, split = broken.with_name("half"), broken.with_name("split")
    plain.save_pretrained(half, variant="fp16")
    assert "text_encoder has its weights only as model.fp16.safetensors, and lbgen reads model.safetens" in refusal(
        half
    )
    plain.unet.save_pretrained(split / "unet", variant="fp16", max_shard_size="50KB")
    shutil.copytree(split / "unet", broken / "unet", dirs_exist_ok=True)
    load_generator(str(broken))
    (broken / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert "unet has its weights only as diffusion_pytorch_model" in refusal(broken)


def test_a_text_encoder_may_bring_the_configuration_of_a_whole_clip(broken: Path, tiny_clip_folder: Path) -> None:
    """As some checkpoints on the hub do; transformers takes the half that it needs."""
    shutil.rmtree(broken / "text_encoder")
    shutil.copytree(tiny_clip_folder, broken / "text_encoder")
    assert images_of(load_generator(str(broken))).isfinite().all()


def test_a_single_file_that_may_run_code_is_refused(tmp_path: Path) -> None:
    """As other programs store a whole checkpoint."""
    file = tmp_path / "model.ckpt"
    file.write_bytes(b"weights")
    message = refusal(file)
    assert "is a single file; if you trust" in message
    assert "from_single_file" in message and "no such folder" not in message


UNETS = [
    ({"in_channels": 9}, "unet has in_channels 9, latents have 4"),
    ({"in_channels": 5}, "unet has in_channels 5, latents have 4"),
    ({"out_channels": 8}, "unet has out_channels 8, latents have 4"),
    ({"time_cond_proj_dim": 16}, "unet has time_cond_proj_dim 16: it takes the guidance scale"),
    ({"num_class_embeds": 10}, "unet has num_class_embeds 10: it takes a class"),
    ({"class_embed_type": "timestep"}, "unet has class_embed_type 'timestep': it takes a class or a noise level"),
    ({"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64},
     "unet has addition_embed_type 'text_time': it takes the image's size"),
    ({"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 16}, "unet has encoder_hid_dim_type 'image_proj'"),
    ({"cross_attention_dim": 24}, "unet reads texts of 24 channels, text_encoder gives 16"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), UNETS)
def test_a_network_of_another_kind_is_refused_by_its_configuration(
    broken: Path, change: dict[str, object], expected: str
) -> None:
    """Saved by diffusers itself; the weights are then taken away, since none may be read."""
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(broken, subfolder="unet") | change)
    unet.save_pretrained(broken / "unet")
    for weights in broken.rglob("*.safetensors"):
        weights.write_bytes(b"")
    assert expected in refusal(broken)


def test_a_part_of_another_class_is_refused_by_its_configuration(broken: Path) -> None:
    shutil.rmtree(broken / "text_encoder")
    BertModel(BertConfig(vocab_size=99, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(
        broken / "text_encoder"
    )
    index = broken / "model_index.json"
    index.write_text(index.read_text().replace("CLIPTextModel", "BertModel"))
    assert "text_encoder is of type 'bert', not clip_text_model" in refusal(broken)
    tiny = {f"{part}_block_out_channels": (8, 8) for part in ("encoder", "decoder")}
    blocks = {f"num_{part}_blocks": (1, 1) for part in ("encoder", "decoder")}
    AutoencoderTiny(**tiny, **blocks).save_pretrained(broken / "vae")
    assert "vae is of class 'AutoencoderTiny', not AutoencoderKL" in refusal(broken)


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

"""LoRA adapters against diffusers' own loader, and what they must and must not change."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from trajectories import (
    PROMPTS,
    STEPS,
    TARGETS,
    adapted,
    draws,
    gradients_of,
    images_of,
    images_of_diffusers,
    plain,
    shake,
)

from lbgen.alignment.config import AlignConfig
from lbgen.errors import UserError
from lbgen.models import adapter
from lbgen.models.generator import Generator, load_generator


@pytest.mark.parametrize("text_encoder", [False, True])
def test_diffusers_loads_the_saved_adapter_and_draws_the_same_image(
    text_encoder: bool, tiny_sd_folder: Path, tmp_path: Path
) -> None:
    generator = adapted(tiny_sd_folder, text_encoder=text_encoder)
    generator.save_adapter(tmp_path / "adapter")
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["pytorch_lora_weights.safetensors"]
    pipeline = plain(tiny_sd_folder)
    before = images_of_diffusers(pipeline, guidance_scale=2.0)
    pipeline.load_lora_weights(tmp_path / "adapter")
    after = images_of_diffusers(pipeline, guidance_scale=2.0)
    assert (before - after).abs().max() > 0.05
    torch.testing.assert_close(images_of(generator).clamp(0, 1), after, rtol=1e-4, atol=2e-5)


def test_equal_adapters_make_equal_files(tiny_sd_folder: Path, tmp_path: Path) -> None:
    """No set in an order of its own, no second metadata entry (safetensors shuffles them), no path of the base."""
    contents = []
    for name in ("first", "second"):
        adapted(tiny_sd_folder, text_encoder=True).save_adapter(tmp_path / name)
        contents.append((tmp_path / name / "pytorch_lora_weights.safetensors").read_bytes())
    assert contents[0] == contents[1]
    assert str(tiny_sd_folder).encode() not in contents[0]
    with safe_open(tmp_path / "first" / "pytorch_lora_weights.safetensors", "pt") as file:
        (description,) = file.metadata().values()
    assert json.loads(description)["unet.target_modules"] == sorted(TARGETS)


def test_a_fresh_adapter_changes_nothing(tiny_sd_folder: Path) -> None:
    generator = load_generator(str(tiny_sd_folder))
    before = images_of(generator)
    generator.add_adapter(rank=2, alpha=2, targets=TARGETS)
    torch.testing.assert_close(images_of(generator), before)


@pytest.mark.parametrize("text_encoder", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_adapter_has_the_saved_bits_and_trains_on(
    text_encoder: bool, dtype: torch.dtype, tiny_sd_folder: Path, tmp_path: Path
) -> None:
    """A as it was; B times 3 / 2, alpha over rank, as alpha is now the rank. Divided by it again in the old adapter."""
    saved = adapted(tiny_sd_folder, text_encoder=text_encoder, dtype=dtype)
    saved.save_adapter(tmp_path)
    loaded = load_generator(str(tiny_sd_folder), dtype=dtype)
    loaded.load_adapter(tmp_path)
    pairs = list(zip(saved.adapter_parameters(), loaded.adapter_parameters(), strict=True))
    assert (
        len(pairs) == 64 + 16 * text_encoder
    )  # A and B of four projections in eight attentions, and in two text layers
    for (name, ours), (again, theirs) in pairs:
        stored = ours * 3 / 2 if "lora_B" in name else ours
        assert name == again and torch.equal(stored, theirs) and theirs.requires_grad and theirs.dtype == torch.float32
    before = [(ours.detach().clone(), theirs.detach().clone()) for (_, ours), (_, theirs) in pairs]
    for generator in (saved, loaded):
        shake(generator, 7)
        generator.load_adapter(tmp_path)  # into the adapter that is there
    for (kept, stored), ((_, ours), (_, theirs)) in zip(before, pairs, strict=True):
        assert torch.equal(theirs, stored)
        torch.testing.assert_close(ours, kept, rtol=1e-6, atol=0)


@pytest.mark.parametrize("text_encoder", [False, True])
def test_merged_equals_unmerged(text_encoder: bool, tiny_sd_folder: Path, tmp_path: Path) -> None:
    generator = adapted(tiny_sd_folder, text_encoder=text_encoder)
    generator.save_adapter(tmp_path)
    merged = load_generator(str(tiny_sd_folder))
    merged.merge_adapter(tmp_path)
    assert merged.adapter_parameters() == []
    torch.testing.assert_close(images_of(merged), images_of(generator), rtol=1e-4, atol=2e-5)


def test_a_folder_of_an_adapter_may_be_given_as_text(tiny_sd_folder: Path, tmp_path: Path) -> None:
    generator, saved = adapted(tiny_sd_folder), str(tmp_path / "adapter")
    generator.save_adapter(saved)
    loaded, merged = load_generator(str(tiny_sd_folder)), load_generator(str(tiny_sd_folder))
    loaded.load_adapter(saved)
    merged.merge_adapter(saved)
    torch.testing.assert_close(images_of(loaded), images_of(generator), rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(images_of(merged), images_of(generator), rtol=1e-4, atol=2e-5)


def test_merging_weighs_the_product_with_alpha_over_rank(tiny_sd_folder: Path, tmp_path: Path) -> None:
    """W + 3 / 2 * B A, from the adapter's own parameters."""
    generator = adapted(tiny_sd_folder)
    generator.save_adapter(tmp_path)
    weights = dict(generator.adapter_parameters())
    merged, base = load_generator(str(tiny_sd_folder)), plain(tiny_sd_folder)
    merged.merge_adapter(tmp_path)
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    product = weights[f"unet.{layer}.lora_B.default.weight"] @ weights[f"unet.{layer}.lora_A.default.weight"]
    expected = base.unet.get_submodule(layer).weight + 3 / 2 * product
    torch.testing.assert_close(merged.family.unet.get_submodule(layer).weight, expected)


def test_rank_stabilised_it_is_pefts_own(tiny_sd_folder: Path) -> None:
    """alpha / sqrt(rank) of the run's settings, against `use_rslora` of peft with the same A and B."""
    config = AlignConfig(vocabulary="microworld", rank=4, alpha=3, use_rslora=True, lora_targets=TARGETS)
    generator = load_generator(str(tiny_sd_folder))
    generator.add_adapter(config.rank, config.lora_alpha, config.lora_targets)
    shake(generator, 6)
    plain_network = UNet2DConditionModel.from_pretrained(tiny_sd_folder, subfolder="unet")
    settings = LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=list(TARGETS))
    inject_adapter_in_model(settings, plain_network, adapter.NAME)
    trained = dict(adapter.parameters(generator.family.network))
    with torch.no_grad():
        for name, parameter in adapter.parameters(plain_network):
            parameter.copy_(trained[name])
    for name, layer in adapter.layers(generator.family.network):
        theirs = plain_network.get_submodule(name).get_delta_weight(adapter.NAME)
        torch.testing.assert_close(layer.get_delta_weight(adapter.NAME), theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("text_encoder", [False, True])
def test_the_base_images_come_back_while_the_adapter_is_off(text_encoder: bool, tiny_sd_folder: Path) -> None:
    for merged_sampler in (False, True):
        generator = adapted(tiny_sd_folder, text_encoder=text_encoder, merged_sampler=merged_sampler)
        with_adapter = images_of(generator)
        with generator.adapter_enabled(False):
            base = images_of(generator)
        torch.testing.assert_close(base, images_of(load_generator(str(tiny_sd_folder))), rtol=1e-4, atol=1e-5)
        assert torch.equal(images_of(generator), with_adapter) and (with_adapter - base).abs().max() > 0.05
        assert all(parameter.requires_grad for _, parameter in generator.adapter_parameters())


def test_the_merged_sampler_follows_the_adapter_and_leaves_its_gradients_alone(tiny_sd_folder: Path) -> None:
    """Against the same adapter unmerged, after each of several changes."""
    unmerged, merged = adapted(tiny_sd_folder), adapted(tiny_sd_folder, merged_sampler=True)
    for seed in (1, 2, 3):
        shake(unmerged, seed)
        shake(merged, seed)
        torch.testing.assert_close(images_of(merged), images_of(unmerged), rtol=1e-4, atol=2e-5)
        for ours, theirs in zip(gradients_of(merged), gradients_of(unmerged), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())
    untouched, of_base = merged._merged.network.conv_in.weight, merged.family.unet.conv_in.weight
    assert untouched is of_base  # weights without an adapter are not stored twice


def test_the_merged_sampler_does_not_drift(tiny_sd_folder: Path) -> None:
    """In bfloat16, where adding and subtracting would lose bits: the same adapter gives the same bits again."""
    generator = adapted(tiny_sd_folder, merged_sampler=True, dtype=torch.bfloat16)
    before = images_of(generator)
    for seed in (1, 2, 6):
        shake(generator, seed)
    assert torch.equal(images_of(generator), before)


def test_training_leaves_the_base_weights_alone(tiny_sd_folder: Path) -> None:
    generator = adapted(tiny_sd_folder, text_encoder=True, merged_sampler=True)
    names = {name for name, _ in generator.adapter_parameters()}
    parts = {"unet": generator.family.unet, "text_encoder": generator.family.text_encoder, "vae": generator.family.vae}
    everything = {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}
    assert {name for name, parameter in everything.items() if parameter.requires_grad} == names
    before = {name: parameter.detach().clone() for name, parameter in everything.items()}
    optimizer = torch.optim.SGD([parameter for _, parameter in generator.adapter_parameters()], lr=10.0)
    for parameter, gradient in zip(optimizer.param_groups[0]["params"], gradients_of(generator), strict=True):
        parameter.grad = gradient
    optimizer.step()
    generator.refresh_sampler()
    changed = {name for name, parameter in everything.items() if not torch.equal(parameter, before[name])}
    assert changed == names


def test_the_text_encoders_adapter_receives_its_true_gradient(tiny_sd_folder: Path) -> None:
    """Against a central difference of the loss along the gradient; at the differentiated calls only the text moves."""
    generator = adapted(tiny_sd_folder, text_encoder=True)
    parameters = [p for name, p in generator.adapter_parameters() if name.startswith("text_encoder.")]
    latents, timestep = draws()[0], generator.timesteps(STEPS).timesteps[2]
    weights = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))

    def loss() -> Tensor:
        return (generator.predict(latents, timestep, generator.encode(PROMPTS)) * weights).sum()

    gradients = torch.autograd.grad(loss(), parameters)
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert norm > 0.1

    @torch.no_grad()
    def loss_at(distance: float) -> Tensor:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter += distance * gradient / norm
        value = loss()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= distance * gradient / norm
        return value

    slope = (loss_at(1e-3) - loss_at(-1e-3)) / 2e-3
    torch.testing.assert_close(slope, norm, rtol=0.02, atol=0)


def test_gradient_checkpointing_gives_the_same_gradients(tiny_sd_folder: Path) -> None:
    kept, recomputed = adapted(tiny_sd_folder), adapted(tiny_sd_folder)
    recomputed.enable_gradient_checkpointing()
    passes = {kept: 0, recomputed: 0}

    def count(generator: Generator) -> None:
        passes[generator] += 1

    for generator in passes:
        generator.family.unet.up_blocks[1].resnets[0].register_forward_pre_hook(lambda *_, of=generator: count(of))
    for ours, theirs in zip(gradients_of(recomputed), gradients_of(kept), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())
    assert passes[recomputed] == passes[kept] + 2  # once more in the backward pass of each differentiated call


@pytest.mark.parametrize(("side", "parts"), [(64, [8, 1]), (256, [4, 4, 1]), (512, [1] * 9), (1024, [1] * 9)])
def test_gradient_checkpointing_decodes_at_once_what_one_large_image_would_need(
    side: int, parts: list[int], tiny_sd_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, decoded = adapted(tiny_sd_folder), []
    generator.default_size = (side, side)
    generator.enable_gradient_checkpointing()
    decode = generator.family.vae.decode
    monkeypatch.setattr(
        generator.family.vae,
        "decode",
        lambda latents, **options: decoded.append(len(latents)) or decode(latents, **options),
    )
    assert len(generator.decode(torch.zeros(9, 4, 4, 4))) == 9
    assert decoded == parts


def test_a_target_that_names_no_layer_is_refused(tiny_generator: Generator) -> None:
    with pytest.raises(UserError, match="lora_targets: to_qq names no layer"):
        tiny_generator.add_adapter(rank=2, alpha=2, targets=("to_q", "to_qq"))


def test_a_folder_without_a_usable_adapter_is_refused(
    tiny_generator: Generator, tiny_sd_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r": no pytorch_lora_weights\.safetensors in it"):
        tiny_generator.merge_adapter(tmp_path)
    adapted(tiny_sd_folder).save_adapter(tmp_path)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(load_file(path), path)
    with pytest.raises(UserError, match="does not say its rank and alpha"):
        tiny_generator.merge_adapter(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="is damaged"):
        tiny_generator.merge_adapter(tmp_path)


def test_an_adapter_of_another_generator_is_refused_by_name(
    tiny_generator: Generator, tiny_sd_folder: Path, tmp_path: Path
) -> None:
    """A real UNet of twice the width."""
    folder = tmp_path / "wide"
    shutil.copytree(tiny_sd_folder, folder)
    settings = json.loads((folder / "unet/config.json").read_text())
    UNet2DConditionModel.from_config({**settings, "block_out_channels": (16, 32)}).save_pretrained(folder / "unet")
    adapted(folder).save_adapter(tmp_path / "adapter")
    with pytest.raises(UserError) as caught:
        tiny_generator.merge_adapter(tmp_path / "adapter")
    message = str(caught.value)
    assert str(tmp_path / "adapter") in message and str(tiny_sd_folder) in message and "\n" not in message
    assert "[2, 16] in the adapter and [2, 8] in the generator" in message


def test_a_file_whose_weights_fit_no_part_is_refused(tiny_generator: Generator, tmp_path: Path) -> None:
    """The weights of a transformer, as Stable Diffusion 3's adapters hold, beside metadata of the right kind."""
    path = tmp_path / "pytorch_lora_weights.safetensors"
    for weights in ({"transformer.to_q.lora_A.weight": torch.ones(2, 8)}, {}):
        save_file(weights, path, {"lora_adapter_metadata": json.dumps({"transformer.r": 2})})
        with pytest.raises(UserError, match="of neither unet nor text_encoder"):
            tiny_generator.merge_adapter(tmp_path)

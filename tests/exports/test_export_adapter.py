"""An exported adapter in diffusers' own loaders: the same image as lbgen's, with an alpha that is not the rank."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
)
from miniatures import write_stable_diffusion_xl
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from trajectories import (
    PROMPTS,
    STEPS,
    TARGETS,
    adapted,
    draws,
    images_of,
    images_of_diffusers,
    plain,
    write_as_earlier,
)

import lbgen
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.run import align
from lbgen.errors import UserError
from lbgen.exports.adapter import export_adapter
from lbgen.exports.config import ExportAdapterConfig
from lbgen.models import adapter
from lbgen.models.registry import ADAPTER_FILE

FORMATS = ("diffusers", "kohya", "comfyui")


@pytest.fixture(scope="module")
def trained(tiny_config: AlignConfig, tmp_path_factory: pytest.TempPathFactory) -> AlignConfig:
    """A run of rank 2 and alpha 3 with an adapter on the text encoder too."""
    folder = tmp_path_factory.mktemp("trained")
    config = replace(tiny_config, output=str(folder / "run"), alpha=3, max_steps=1, text_encoder_lora=True)
    align(config)
    return config


@pytest.fixture(scope="module")
def saved(tiny_sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """The run folder of a random adapter of rank 2 and alpha 3 on network and text encoder, and the images it makes."""
    folder = tmp_path_factory.mktemp("saved")
    generator = adapted(tiny_sd_folder, text_encoder=True)
    generator.save_adapter(folder / "adapter")
    (folder / "config.yaml").write_text("alpha: 3.0\n")
    return folder, images_of(generator).clamp(0, 1)


@pytest.mark.parametrize("format", FORMATS)
def test_diffusers_loads_every_format_and_draws_the_same_image(
    format: str, saved: tuple[Path, Tensor], tiny_sd_folder: Path, tmp_path: Path
) -> None:
    folder, ours = saved
    file = export_adapter(ExportAdapterConfig(folder, tmp_path / "a.safetensors", format=format))
    pipeline = plain(tiny_sd_folder)
    before = images_of_diffusers(pipeline, guidance_scale=2.0)
    pipeline.load_lora_weights(file)
    after = images_of_diffusers(pipeline, guidance_scale=2.0)
    assert (before - after).abs().max() > 0.05
    torch.testing.assert_close(ours, after, rtol=1e-4, atol=2e-5)
    alphas = {tensor.item() for name, tensor in load_file(file).items() if name.endswith(".alpha")}
    assert alphas == (set() if format == "diffusers" else {3.0})


@pytest.mark.parametrize("format", FORMATS)
def test_both_text_encoders_of_the_xl_family_get_their_own(format: str, tmp_path: Path) -> None:
    model = write_stable_diffusion_xl(tmp_path / "xl")
    generator = adapted(model, text_encoder=True, guidance_scale=2.0)
    generator.save_adapter(tmp_path / "adapter")
    file = export_adapter(ExportAdapterConfig(tmp_path / "adapter", tmp_path / "out/a.safetensors", format=format))
    pipeline = StableDiffusionXLPipeline.from_pretrained(model, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(file)
    noise, rngs = draws()
    theirs = pipeline(
        PROMPTS, latents=noise, generator=rngs, num_inference_steps=STEPS, guidance_scale=2.0, output_type="pt"
    ).images
    torch.testing.assert_close(images_of(generator).clamp(0, 1), theirs, rtol=1e-4, atol=1e-4)
    if format != "diffusers":
        names = {name.split(".")[0] for name in load_file(file)}
        assert {"lora_te1", "lora_te2", "lora_unet"} == {"_".join(name.split("_")[:2]) for name in names}


def delta_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """alpha / rank * B A by layer, as ComfyUI and A1111 compute it."""
    layers = {name.removesuffix(".alpha") for name in weights if name.endswith(".alpha")}
    assert len(weights) == 3 * len(layers)
    factors = {
        layer: [weights[f"{layer}.{kind}"] for kind in ("lora_up.weight", "lora_down.weight", "alpha")]
        for layer in layers
    }
    return {layer: alpha / down.shape[0] * up @ down for layer, (up, down, alpha) in factors.items()}


def test_alpha_is_the_runs_and_explains_the_update(trained: AlignConfig, tmp_path: Path) -> None:
    """Against the file that the run wrote, whose alpha is its rank."""
    file = export_adapter(ExportAdapterConfig(trained.folder, tmp_path / "a.safetensors", format="kohya"))
    weights, theirs = load_file(file), load_file(trained.folder / "adapter" / ADAPTER_FILE)
    assert {tensor.item() for name, tensor in weights.items() if name.endswith(".alpha")} == {3.0}
    deltas = delta_weights(weights)
    assert len(deltas) == len(theirs) / 2
    for name, a in theirs.items():
        part, _, layer = name.removesuffix(".lora_A.weight").partition(".")
        if name.endswith(".lora_A.weight"):
            prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part]
            expected = theirs[name.replace("lora_A", "lora_B")] @ a
            torch.testing.assert_close(deltas.pop(prefix + layer.replace(".", "_")), expected, rtol=1e-5, atol=1e-9)
    assert not deltas


def test_a_rank_stabilised_run_is_exported_with_the_alpha_that_explains_it(
    tiny_config: AlignConfig, tmp_path: Path
) -> None:
    """alpha sqrt(rank), since programs divide by the rank; against the file that the run wrote."""
    config = replace(tiny_config, output=str(tmp_path / "run"), alpha=3, use_rslora=True, max_steps=1, evaluate_every=0)
    align(config)
    file = export_adapter(ExportAdapterConfig(config.folder, tmp_path / "a.safetensors", format="kohya"))
    weights, theirs = load_file(file), load_file(config.folder / "adapter" / ADAPTER_FILE)
    alphas = [tensor.item() for name, tensor in weights.items() if name.endswith(".alpha")]
    assert alphas == pytest.approx([3 * 2**0.5] * len(alphas))
    for layer, delta in delta_weights(weights).items():
        name = next(name for name in theirs if layer == f"lora_{name.partition('.lora_')[0].replace('.', '_')}")
        layer = name.partition(".lora_")[0]
        expected = theirs[f"{layer}.lora_B.weight"] @ theirs[f"{layer}.lora_A.weight"]
        torch.testing.assert_close(delta, expected, rtol=1e-5, atol=1e-9)
    assert "alpha 3, rank-stabilised" in (config.folder / "adapter/README.md").read_text()


def test_the_header_says_what_made_it_and_names_no_folder(trained: AlignConfig, tmp_path: Path) -> None:
    for format in FORMATS:
        file = export_adapter(ExportAdapterConfig(trained.folder, tmp_path / f"{format}.safetensors", format=format))
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        origin = json.loads(metadata["lbgen"])
        assert origin["lbgen"] == lbgen.__version__ and origin["generator"] == Path(trained.generator).name
        recorded = json.loads((trained.folder / "provenance.json").read_text())
        assert origin["generator_sha256"] == recorded["generator_sha256"]
        assert (origin["steps"], origin["scheduler"], origin["max_steps"]) == (3, "ddpm", 1)
        assert "/" not in metadata["lbgen"]
        if format != "diffusers":
            assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("2", "3")


def test_the_file_of_an_earlier_version_is_exported_by_the_names_of_today(tiny_sd_folder: Path, tmp_path: Path) -> None:
    """Its alpha stands beside the weights, and CLIP's layers have transformers' names."""
    generator = adapted(tiny_sd_folder, text_encoder=True)
    write_as_earlier(generator, tmp_path / "earlier")
    for format in FORMATS:
        file = export_adapter(ExportAdapterConfig(tmp_path / "earlier", tmp_path / f"{format}.safetensors", format))
        pipeline = plain(tiny_sd_folder)
        pipeline.load_lora_weights(file)
        theirs = images_of_diffusers(pipeline, guidance_scale=2.0)
        torch.testing.assert_close(images_of(generator).clamp(0, 1), theirs, rtol=1e-4, atol=2e-5)


def test_a_folder_is_enough_for_diffusers_and_is_written_again(saved: tuple[Path, Tensor], tmp_path: Path) -> None:
    for _ in range(2):
        assert export_adapter(ExportAdapterConfig(saved[0], tmp_path / "out")) == tmp_path / "out" / ADAPTER_FILE


NETWORKS = {
    "flux": (
        FluxPipeline,
        lambda: FluxTransformer2DModel(
            in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
        ),
    ),
    "sd3": (
        StableDiffusion3Pipeline,
        lambda: SD3Transformer2DModel(
            sample_size=8, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
            joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=64, out_channels=4,
        ),
    ),
}  # fmt: skip
"""Transformers: the pipeline whose loader reads their adapters, and a miniature."""


@pytest.mark.parametrize(("family", "format"), [("flux", "diffusers"), ("flux", "comfyui"), ("sd3", "comfyui")])
def test_diffusers_merges_a_transformers_adapter_to_the_same_weights(family: str, format: str, tmp_path: Path) -> None:
    """Against W + 3 / 2 * B A of every layer; nothing but the transformer is in the pipeline."""
    pipeline_class, make = NETWORKS[family]
    network, plain_network = make(), make()
    plain_network.load_state_dict(network.state_dict())
    adapter.attach(network, adapter.configuration(2, 3, TARGETS))
    rng = torch.Generator().manual_seed(0)
    for _, parameter in adapter.parameters(network):
        parameter.data = torch.randn(parameter.shape, generator=rng)
    adapter.save(tmp_path / "adapter", {"transformer": network})
    file = export_adapter(ExportAdapterConfig(tmp_path / "adapter", tmp_path / "a.safetensors", format))
    if format == "comfyui":
        assert all(name.startswith("transformer.") and ".lora_" in name for name in load_file(file))
    empty = dict.fromkeys(pipeline_class._get_signature_keys(pipeline_class)[0])
    pipeline = pipeline_class(**{**empty, "transformer": plain_network})
    pipeline.load_lora_weights(file)
    pipeline.fuse_lora(components=["transformer"])
    pipeline.unload_lora_weights()
    layers = list(adapter.layers(network))
    assert len(layers) > 4
    for name, layer in layers:
        ours = adapter.merged_weight(layer)
        torch.testing.assert_close(plain_network.get_submodule(name).weight, ours, rtol=1e-5, atol=1e-5)


def test_an_adapter_with_a_missing_factor_or_another_rank_is_refused(
    saved: tuple[Path, Tensor], tmp_path: Path
) -> None:
    file = saved[0] / "adapter" / ADAPTER_FILE
    weights = load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    first = min(weights)
    for changed in (
        {name: each for name, each in weights.items() if name != first},
        {**weights, first: torch.ones(5, 8)},
        {**weights, "unet.conv_in.bias": torch.ones(8)},
    ):
        save_file(changed, tmp_path / ADAPTER_FILE, metadata)
        for format in FORMATS:
            with pytest.raises(UserError, match="is not one of two factors of rank 2; write the adapter again"):
                export_adapter(ExportAdapterConfig(tmp_path, tmp_path.with_name(f"{format}.safetensors"), format))


@pytest.mark.parametrize(
    ("run", "output", "expected"),
    [
        ("none", "a.safetensors", "none: there is no such folder; give the adapter folder"),
        ("empty", "a.safetensors", "empty: no pytorch_lora_weights.safetensors in it; give the adapter folder"),
        ("saved", "a.bin", "a.bin: for kohya give the name of a file that ends in .safetensors"),
        ("saved", "saved/a.safetensors", "it lies in the run folder"),
        ("saved", "folder.safetensors", "it is a folder; give the name of a file"),
        ("saved", "file/a.safetensors", "File exists; choose a folder that can be written"),
        ("saved", "other.safetensors", "other.safetensors: lbgen export did not write it; choose another name"),
        ("saved", "model.safetensors", "model.safetensors: lbgen export did not write it; choose another name"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    run: str, output: str, expected: str, saved: tuple[Path, Tensor], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "other.safetensors").touch()
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "saved").symlink_to(saved[0])
    with pytest.raises(UserError) as caught:
        export_adapter(ExportAdapterConfig(tmp_path / run, tmp_path / output, format="kohya"))
    assert expected in str(caught.value) and "\n" not in str(caught.value)

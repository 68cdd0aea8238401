"""An adapter of a transformer by kohya's names, merged as ComfyUI and kohya's scripts do it, and by diffusers."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline, SD3Transformer2DModel
from miniatures import WRITERS
from original_transformers import ORIGINAL, original
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from trajectories import PROMPTS, STEPS, draws, images_of, shake

from lbgen.errors import UserError
from lbgen.exports.adapter import export_adapter
from lbgen.exports.config import ExportAdapterConfig
from lbgen.models import adapter
from lbgen.models.checkpoints.suited import suited_settings
from lbgen.models.generator import Generator, load_generator
from lbgen.models.registry import ADAPTER_FILE

ONE_STREAM = "single_transformer_blocks.0"
TARGETS = {
    "sd3": ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "to_add_out", "ff.net.0.proj", "ff_context.net.2"),
    "flux": ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "proj_mlp", f"{ONE_STREAM}.proj_out", "ff.net.2"),
    "flux-2-klein": (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "to_qkv_mlp_proj",
        f"{ONE_STREAM}.attn.to_out",
        "ff.linear_in",
    ),
    "z-image": ("to_q", "to_k", "to_v", "to_out.0", "feed_forward.w2", "layers.0.adaLN_modulation.0"),
}
"""Layers of every kind."""


def trained(family: str, folder: Path, targets: tuple[str, ...]) -> Generator:
    """The run folder of a random adapter of rank 2 and alpha 3 on a miniature, and the generator with it."""
    model = WRITERS[family](folder / "model")
    settings = suited_settings(str(model))
    generator = load_generator(str(model), scheduler="native", guidance_scale=settings.get("guidance_scale", 2.0))
    generator.add_adapter(rank=2, alpha=3, targets=targets)
    shake(generator, 6)
    generator.save_adapter(folder / "run/adapter")
    (folder / "run/config.yaml").write_text(f"alpha: 3.0\ngenerator: {model}\n")
    return generator


def merged_by_kohya(weights: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """W + alpha / rank * up down for the layer of each name: lora_unet_ and the layer's own, with underscores."""
    lora, merged = load_file(file), dict(weights)
    layers = {f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}": name for name in weights}
    for name in {name.partition(".")[0] for name in lora}:
        down, up, alpha = (lora.pop(f"{name}.{kind}") for kind in ("lora_down.weight", "lora_up.weight", "alpha"))
        merged[layers[name]] = merged[layers[name]] + alpha / down.shape[0] * up @ down
    assert not lora
    return merged


def merged_by_lbgen(family: str, generator: Generator) -> dict[str, Tensor]:
    """By the makers' names."""
    network = generator.family.network
    weights = {
        name.replace(".base_layer", ""): each for name, each in network.state_dict().items() if ".lora_" not in name
    }
    for name, layer in adapter.layers(network):
        weights[f"{name}.weight"] = adapter.merged_weight(layer)
    return ORIGINAL[family](weights)


@pytest.mark.parametrize("family", TARGETS)
def test_merged_into_the_makers_weights_it_is_the_adapter(family: str, tmp_path: Path) -> None:
    """By a reader of kohya's names written here, and for FLUX.2 by those that ComfyUI gets, which are the same."""
    generator = trained(family, tmp_path, TARGETS[family])
    expected, weights = merged_by_lbgen(family, generator), original(family, tmp_path / "model")
    formats = ("kohya", "comfyui") if family == "flux-2-klein" else ("kohya",)
    for format in formats:
        file = export_adapter(ExportAdapterConfig(tmp_path / "run", tmp_path / f"{format}.safetensors", format))
        found = merged_by_kohya(weights, file)
        assert found.keys() == expected.keys() and any(not torch.equal(found[name], weights[name]) for name in found)
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-5, msg=name)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("2", "3")


def test_the_makers_weights_with_it_draw_the_same_image_in_diffusers(tmp_path: Path) -> None:
    generator = trained("sd3", tmp_path, TARGETS["sd3"])
    file = export_adapter(ExportAdapterConfig(tmp_path / "run", tmp_path / "a.safetensors", "kohya"))
    save_file(merged_by_kohya(original("sd3", tmp_path / "model"), file), tmp_path / "merged.safetensors")
    config = {"config": str(tmp_path / "model"), "subfolder": "transformer"}
    network = SD3Transformer2DModel.from_single_file(str(tmp_path / "merged.safetensors"), **config)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model", transformer=network)
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": STEPS, "guidance_scale": 2.0, "output_type": "pt"}
    theirs = pipeline(PROMPTS, latents=draws()[0], **options).images
    torch.testing.assert_close(images_of(generator).clamp(0, 1), theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["flux-2-klein", "z-image"])
def test_diffusers_reads_kohyas_names(family: str, tmp_path: Path) -> None:
    """With the layers that its loader knows; Stable Diffusion 3's it does not read."""
    generator = trained(family, tmp_path, TARGETS[family][:5])
    file = export_adapter(ExportAdapterConfig(tmp_path / "run", tmp_path / "a.safetensors", "kohya"))
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model")
    pipeline.load_lora_weights(file)
    pipeline.fuse_lora(components=["transformer"])
    pipeline.unload_lora_weights()
    for name, layer in adapter.layers(generator.family.network):
        theirs = pipeline.transformer.get_submodule(name).weight
        torch.testing.assert_close(theirs, adapter.merged_weight(layer), rtol=1e-5, atol=1e-5, msg=name)


def test_diffusers_reads_flux_in_its_real_width(tmp_path: Path) -> None:
    """Its loader knows that width alone; the products of both factors, layer by layer, rank 2 and alpha 3."""
    double = [f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0", "add_v_proj")]
    single = [f"single_transformer_blocks.1.attn.{name}" for name in ("to_q", "to_k", "to_v")]
    state = {}
    for layer in (*double, *single):
        state |= {f"{layer}.lora_A.weight": torch.randn(2, 3072), f"{layer}.lora_B.weight": torch.randn(3072, 2)}
    weights, description = adapter.file_content({"transformer": (adapter.configuration(2, 3, ["to_q"]), state)})
    (tmp_path / "run").mkdir()
    save_file(weights, tmp_path / "run" / ADAPTER_FILE, {adapter.METADATA: description})
    file = export_adapter(ExportAdapterConfig(tmp_path / "run", tmp_path / "a.safetensors", "kohya"))
    theirs = FluxPipeline.lora_state_dict(file)
    for layer in (*double, *single):
        a, b = (theirs[f"transformer.{layer}.lora_{factor}.weight"] for factor in "AB")
        ours = 1.5 * state[f"{layer}.lora_B.weight"] @ state[f"{layer}.lora_A.weight"]
        torch.testing.assert_close(b @ a, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "targets", "expected"),
    [
        ("sana", ("to_q",), "kohya's scripts do not read adapters of a SanaPipeline; give --format diffusers"),
        (
            "pixart-sigma",
            ("to_q",),
            "kohya's scripts do not read adapters of a PixArtSigmaPipeline; give --format comfyui",
        ),
        ("sd3", ("norm_out.linear",), "it has no name for the layer norm_out.linear; give --format comfyui"),
    ],
)
def test_what_has_no_name_is_refused(family: str, targets: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    trained(family, tmp_path, targets)
    with pytest.raises(UserError, match=f"^--format kohya: {expected}"):
        export_adapter(ExportAdapterConfig(tmp_path / "run", tmp_path / "a.safetensors", "kohya"))
    assert not (tmp_path / "a.safetensors").exists()


def test_an_adapter_folder_alone_may_not_say_its_family(tmp_path: Path) -> None:
    """Blocks of two streams are called alike in Stable Diffusion 3 and in FLUX."""
    trained("sd3", tmp_path, ("attn.to_q",))
    with pytest.raises(UserError, match="names depend on the generator's family; give the run folder"):
        export_adapter(ExportAdapterConfig(tmp_path / "run/adapter", tmp_path / "a.safetensors", "kohya"))
    trained("z-image", tmp_path / "z", ("to_q",))  # told by its layers
    export_adapter(ExportAdapterConfig(tmp_path / "z/run/adapter", tmp_path / "z.safetensors", "kohya"))
    assert "lora_unet_layers_0_attention_qkv.lora_down.weight" in load_file(tmp_path / "z.safetensors")

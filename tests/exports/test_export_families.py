"""Every family's exports, weight by weight, in plain diffusers."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from miniatures import WRITERS
from torch import Tensor
from trajectories import TARGETS, shake

from lbgen.exports.adapter import export_adapter
from lbgen.exports.config import ExportAdapterConfig, ExportMergedConfig
from lbgen.exports.merged import export_merged
from lbgen.models import adapter
from lbgen.models.checkpoints.suited import suited_settings
from lbgen.models.generator import load_generator


def weights_of(pipeline: DiffusionPipeline) -> dict[str, Tensor]:
    """Of every network in it, by part and name."""
    parts = {part: each for part, each in pipeline.components.items() if isinstance(each, torch.nn.Module)}
    return {f"{part}.{name}": each for part, module in parts.items() for name, each in module.state_dict().items()}


@pytest.mark.parametrize("family", WRITERS)
def test_exports_have_the_weights_of_the_generator_with_its_adapter(family: str, tmp_path: Path) -> None:
    """W + 3 / 2 * B A where the adapter is, W elsewhere: merged, and of the file that ComfyUI reads."""
    folder = WRITERS[family](tmp_path / "model")
    settings = suited_settings(str(folder))
    guidance = {name: value for name, value in settings.items() if name != "scheduler"}
    generator = load_generator(str(folder), scheduler=settings.get("scheduler"), **guidance)
    generator.add_adapter(rank=2, alpha=3, targets=TARGETS)
    shake(generator, 6)
    generator.save_adapter(tmp_path / "adapter")
    expected, network = weights_of(DiffusionPipeline.from_pretrained(folder)), generator.family.network
    for name, layer in adapter.layers(network):
        expected[f"{generator.family.network_name}.{name}.weight"] = adapter.merged_weight(layer)

    merged = export_merged(ExportMergedConfig(tmp_path / "adapter", tmp_path / "merged", generator=str(folder)))
    compare(weights_of(DiffusionPipeline.from_pretrained(merged)), expected)
    load_generator(str(merged), scheduler=settings.get("scheduler"), **guidance)

    file = export_adapter(ExportAdapterConfig(tmp_path / "adapter", tmp_path / "a.safetensors", "comfyui"))
    pipeline = DiffusionPipeline.from_pretrained(folder)
    if hasattr(pipeline, "load_lora_weights"):  # not PixArt's
        pipeline.load_lora_weights(file)
        pipeline.fuse_lora(components=[generator.family.network_name])
        pipeline.unload_lora_weights()
        compare(weights_of(pipeline), expected)


def compare(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name].float(), weight.float(), rtol=1e-5, atol=1e-5, msg=name)

"""Q-Align with its weights in 8 and in 4 bits, against a float model of what they are rounded to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from miniatures import QAlignParts, randomize
from safetensors.torch import load_file, save_file
from separate_packages import separate_packages
from torch import nn

import lbgen
from lbgen.errors import UserError
from lbgen.models import registry
from lbgen.models.quality.mplug_owl2 import MPlugOwl2, MPlugOwl2Config
from lbgen.models.semantics import load_semantics

ROUNDED = """
import json, sys
import torch
from bitsandbytes.functional import dequantize_4bit
from safetensors.torch import save_file
from torch import nn
from lbgen.models.quality.q_align import QAlign

folder, quantization, output = sys.argv[1:]
rounded, plain = (QAlign(folder, torch.device("cpu"), torch.float32, each) for each in (quantization, None))
found, layers = {}, dict(plain.model.named_modules())
for name, layer in rounded.model.named_modules():
    if isinstance(layer, nn.Linear) and name != "lm_head":
        weight = layer.weight
        kept = weight.dequantize() if quantization == "int8" else dequantize_4bit(weight.data, weight.quant_state)
        found |= {f"{name} before": layers[name].weight.clone(), f"{name} after": kept.clone()}
        stored = weight.qdata if quantization == "int8" else weight.data
        found |= {f"{name} stored": torch.tensor(stored.numel() * stored.element_size())}
        layers[name].weight.data = kept
for name, scorer in {"rounded": rounded, "plain": plain}.items():
    images = torch.rand(2, 3, 40, 28, generator=torch.Generator().manual_seed(1), requires_grad=True)
    scores = scorer.score(images)
    found |= {f"scores {name}": scores.detach(), f"gradient {name}": torch.autograd.grad(scores.sum(), images)[0]}
save_file(found, output)
"""
HALF_WIDEST_STEP = (1.0 - 0.6961928) / 2
"""Half of the largest step between the 16 values of NF4, from -1 to -0.696 (QLoRA, appendix E)."""


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With 64 weights or a multiple of it in each row, as bitsandbytes expects on a CPU."""
    folder, parts = tmp_path_factory.mktemp("wide"), QAlignParts()
    vision = parts.config["visual_config"]
    tower = vision["visual_model"] | {"hidden_size": 192, "intermediate_size": 64}
    widths = {"hidden_size": 192, "encoder_hidden_size": 192, "intermediate_size": 64}
    visual = {"visual_model": tower, "visual_abstractor": vision["visual_abstractor"] | widths}
    config = parts.config | {"hidden_size": 256, "intermediate_size": 64, "visual_config": visual}
    (folder / "config.json").write_text(json.dumps(config))
    model = MPlugOwl2(MPlugOwl2Config(**config))
    randomize(model, seed=2, gain=2)
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    parts.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_rounded_weights_score_and_differentiate_as_what_they_are_rounded_to(
    wide_folder: Path, tmp_path: Path, quantization: str
) -> None:
    """The weights are within half a step of those in the folder; scores and gradients are those of a model of them."""
    packages = separate_packages("quantizers", "torchao==0.18.0", "bitsandbytes==0.50.2")
    ended = subprocess.run(
        [sys.executable, "-c", ROUNDED, str(wide_folder), quantization, str(tmp_path / "found.safetensors")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(packages), *sys.path]), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = load_file(tmp_path / "found.safetensors")
    layers = [name.removesuffix(" before") for name in found if name.endswith(" before")]
    assert len(layers) > 10
    for name in layers:
        before, after = (found[f"{name} {when}"] for when in ("before", "after"))
        if quantization == "int8":
            largest, half_step = before.abs().amax(dim=1, keepdim=True), 0.5 / 127
        else:
            before, after = before.reshape(-1, 64), after.reshape(-1, 64)
            largest, half_step = before.abs().amax(dim=1, keepdim=True), HALF_WIDEST_STEP
        assert found[f"{name} stored"] == before.numel() * (1 if quantization == "int8" else 0.5)
        error = (after - before).abs() / largest
        assert 0 < error.max() <= 1.01 * half_step, name
    torch.testing.assert_close(found["scores rounded"], found["scores plain"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["gradient rounded"], found["gradient plain"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("quantization", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_rounded_weights_without_their_package_are_refused(
    wide_folder: Path, tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch, quantization: str, package: str
) -> None:
    space = load_semantics(str(tiny_clip_folder))
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    message = rf"the package {package} is not installed; pip install 'lbgen\[{quantization}\]'"
    for refused in (lambda name: lbgen.load_quality(name, space), registry.ensure_quality):
        with pytest.raises(UserError, match=message):
            refused(f"q-align-{quantization}:{wide_folder}")


def test_the_documentation_counts_the_bytes_of_the_released_model() -> None:
    """Of its shapes: each row of 8 bits has a scale, each 64 weights of 4 bits a float32; the rest has 2 bytes."""
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    vision |= {"image_size": 448, "patch_size": 14}
    with torch.device("meta"):
        model = MPlugOwl2(MPlugOwl2Config(vocab_size=32000, visual_config={"visual_model": vision}))
    linear = [each.weight for name, each in model.named_modules() if isinstance(each, nn.Linear) and name != "lm_head"]
    rounded = sum(weight.numel() for weight in linear)
    kept = 2 * (sum(weight.numel() for weight in model.parameters()) - rounded)
    scales = 2 * sum(len(weight) for weight in linear)
    page = (Path(__file__).parents[3] / "docs/models.md").read_text()
    for name, count in {"int8": rounded + scales + kept, "nf4": rounded * (1 / 2 + 4 / 64) + kept}.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `q-align-{name}`")]
        assert f"{count / 1e9:.1f} GB" in row

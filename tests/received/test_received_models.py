"""Models, adapters and pictures from someone else: none of their code runs, and they load nothing else."""

import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch
from miniatures import QAlignParts, write_q_align
from safetensors.torch import save_file

from lbgen.audit.config import AuditConfig
from lbgen.audit.run import audit
from lbgen.errors import UserError
from lbgen.models.adapter import METADATA, read
from lbgen.models.generator import load_generator
from lbgen.models.quality import load_quality
from lbgen.models.semantics import load_semantics
from lbgen.runs import identity

# ---- code from models, adapters and pictures ----


@pytest.mark.parametrize("changes", [{}, {"model_type": "evil"}])
def test_no_code_of_a_semantics_folder_runs(changes, tiny_clip_folder, tmp_path, warm_python):
    """Not even where somebody answers transformers' question with yes."""
    folder = Path(shutil.copytree(tiny_clip_folder, tmp_path / "clip"))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        path = folder / name
        content = json.loads(path.read_text())
        kinds = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoImageProcessor")
        more = changes if name == "config.json" else {}
        path.write_text(json.dumps(content | {"auto_map": {kind: "evil.Evil" for kind in kinds}} | more))
    program = f"from lbgen.models.semantics import load_semantics; load_semantics({str(folder)!r})"
    ended = subprocess.run([warm_python, "-c", program], input="y\ny\ny\n", capture_output=True, text=True)
    assert not (tmp_path / "ran").exists()
    assert "custom code" not in ended.stdout and "[y/N]" not in ended.stdout + ended.stderr


def test_no_code_of_a_generator_folder_runs(tiny_sd_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_sd_folder, tmp_path / "sd"))
    (folder / "scheduler/evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    index = json.loads((folder / "model_index.json").read_text())
    kinds = (
        ["evil", "Evil"],
        ["transformers", "AutoTokenizer"],
        ["diffusers", "StableDiffusionPipeline"],
        ["diffusers"],
    )
    for kind in kinds:
        (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": kind}))
        with pytest.raises(UserError, match="scheduler is not a class of diffusers or transformers"):
            load_generator(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", ["text_encoder", "safety_checker", ""])
def test_a_model_folder_names_no_other_model_to_load(tiny_sd_folder, tmp_path, monkeypatch, place):
    """As transformers does for the base model of an adapter, which may lie on the hub."""
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    folder = Path(shutil.copytree(tiny_sd_folder, tmp_path / "sd"))
    (folder / place).mkdir(exist_ok=True)
    (folder / place / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/model"}))
    with pytest.raises(UserError, match="adapter_config.json: it names another model to load"):
        load_generator(str(folder))
    if place:  # the same where the part is a link
        (folder / place).rename(tmp_path / "part")
        (folder / place).symlink_to(tmp_path / "part")
        with pytest.raises(UserError, match="adapter_config.json: it names another model to load"):
            load_generator(str(folder))


@pytest.mark.parametrize(
    "change",
    [
        {"attn_implementation": "someone/kernel"},
        {"text_config": {"_attn_implementation": {"": "sdpa", "x": "someone/kernel@1"}}},
    ],
)
def test_a_model_folder_names_no_kernel_to_run(tiny_clip_folder, tmp_path, change):
    """As transformers does, from the hub, where the package `kernels` is installed."""
    folder = Path(shutil.copytree(tiny_clip_folder, tmp_path / "clip"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match="config.json: attention 'someone/kernel.* is code from elsewhere"):
        load_semantics(str(folder))


@pytest.mark.parametrize("given", [{"quant_method": "fp8"}, {"quant_method": "nonsense"}])
def test_a_model_folder_does_not_choose_how_its_weights_are_rounded(tiny_clip_folder, tiny_sd_folder, tmp_path, given):
    """transformers rounded those of Q-Align to bf16 for the first of them, without a word."""

    def changed(folder: Path, part: str) -> str:
        folder = Path(shutil.copytree(folder, tmp_path / f"{part or 'whole'} {folder.name}"))
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": given}))
        return str(folder)

    refused = partial(pytest.raises, UserError, match=r"config\.json: quantization_config says")
    with refused():
        load_semantics(changed(tiny_clip_folder, ""))
    for part in ("text_encoder", "unet", "vae"):
        with refused():
            load_generator(changed(tiny_sd_folder, part))
    q_align = write_q_align(tmp_path / "model", QAlignParts())
    with refused():
        load_quality(f"q-align:{changed(q_align, '')}", load_semantics(str(tiny_clip_folder)))


def adapter_with(folder: Path, **changes: object) -> Path:
    """An adapter file whose stored configuration says something else."""
    settings = {"unet.r": 2, "unet.lora_alpha": 2, "unet.target_modules": ["to_q"]}
    settings |= {f"unet.{name}": value for name, value in changes.items()}
    folder.mkdir(exist_ok=True)
    weights = {"unet.mid_block.to_q.lora_A.weight": torch.zeros(2, 4)}
    save_file(weights, folder / "pytorch_lora_weights.safetensors", {METADATA: json.dumps(settings)})
    return folder


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"megatron_core": "evil", "megatron_config": {"a": 1}}, "megatron"),
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"to_q": 7}}, "rank_pattern"),
        ({"something_new": "value"}, "something_new"),
        ({"r": "2"}, "rank"),
        ({"r": 10**30}, "rank"),
        ({"lora_alpha": "nan"}, "alpha"),
        ({"lora_alpha": 0}, "alpha"),
        ({"target_modules": "all-linear"}, "target_modules"),
    ],
)
def test_an_adapter_brings_rank_alpha_and_targets_and_nothing_else(tmp_path, monkeypatch, changes, named):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    folder = adapter_with(tmp_path / "adapter", **changes)
    with pytest.raises(UserError, match=f"pytorch_lora_weights.safetensors, unet.*{named}"):
        read(folder, ("unet",))
    assert not (tmp_path / "ran").exists()


def test_a_setting_at_its_default_is_no_setting(tmp_path):
    """As in the files of earlier versions, which hold all of peft's configuration."""
    folder = adapter_with(tmp_path / "adapter", use_dora=False, megatron_core="megatron.core", rank_pattern={})
    ((settings, _),) = read(folder, ("unet",)).values()
    assert (settings.r, settings.lora_alpha, settings.target_modules) == (2, 2, {"to_q"})


def test_a_picture_is_handed_to_no_other_program(tmp_path, monkeypatch):
    """An EPS called .png goes to Ghostscript, where there is one: a `gs` that says that it ran stands in for it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
    (tmp_path / "bin/gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    for category in ("cup", "fish"):
        folder = tmp_path / f"pictures/{category}"
        folder.mkdir(parents=True)
        (folder / "x.png").write_bytes(eps)
    with pytest.raises(UserError, match="no labelled image in it"):
        audit([tmp_path / "pictures"], AuditConfig(output=tmp_path / "audit", semantics="microworld"))
    assert not (tmp_path / "ran").exists()


def test_a_model_folder_is_not_searched_to_any_depth(tiny_sd_folder, tmp_path):
    """150 folders inside each other; a thousand are more than the stack of Python."""
    folder = Path(shutil.copytree(tiny_sd_folder, tmp_path / "sd"))
    (folder / "/".join("a" * 150)).mkdir(parents=True)
    for use in (load_generator, identity.model_identity):
        with pytest.raises(UserError, match=f"{folder}/a/.*: more than 100 folders inside each other; remove them"):
            use(str(folder))


@pytest.mark.parametrize(
    ("kind", "file", "setting"),
    [
        ("generator", "unet/config.json", "layers_per_block"),
        ("generator", "unet/config.json", "cross_attention_dim"),
        ("generator", "text_encoder/config.json", "num_hidden_layers"),
        ("semantics", "config.json", "num_hidden_layers"),
    ],
)
def test_a_network_of_a_thousand_million_layers_is_not_built(
    tiny_sd_folder, tiny_clip_folder, tmp_path, kind, file, setting
):
    source, load = {"generator": (tiny_sd_folder, load_generator), "semantics": (tiny_clip_folder, load_semantics)}[
        kind
    ]
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    content = json.loads((folder / file).read_text())
    inner = content if kind == "generator" else content["text_config"]
    assert setting in inner
    inner[setting] = 10**9
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{file}, {setting}: 1000000000 is more than"):
        load(str(folder))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"pad_token": None}, "pad_token: none"),
        ({"eos_token": {"__type": "AddedToken", "content": "<new>"}}, "tokens, more than its encoder's"),
        ({"model_max_length": 10**30}, "model_max_length: .* is not in 1 to 16"),
        ({"model_max_length": "16"}, "model_max_length: .* is not in 1 to 16"),
        ({"model_max_length": 17}, "model_max_length: '17' is not in 1 to 16"),
    ],
)
def test_a_tokenizer_that_does_not_fit_its_encoder_is_refused(tiny_sd_folder, tmp_path, change, fault):
    """Such a generator would be loaded, and fail where the first prompt is encoded."""
    folder = Path(shutil.copytree(tiny_sd_folder, tmp_path / "model"))
    path = folder / "tokenizer/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=f"tokenizer/tokenizer_config.json: .*{fault}"):
        load_generator(str(folder))

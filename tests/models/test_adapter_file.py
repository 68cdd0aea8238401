"""The adapter's file, as other programs read it: diffusers with and without metadata, new and old."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from separate_packages import separate_packages
from trajectories import (
    PROMPTS,
    STEPS,
    TARGETS,
    adapted,
    draws,
    images_of,
    images_of_diffusers,
    plain,
    shake,
    write_as_earlier,
)

from lbgen.errors import UserError
from lbgen.models.adapter import METADATA
from lbgen.models.generator import load_generator
from lbgen.models.registry import ADAPTER_FILE

PEERS = ("diffusers==0.35.2", "peft==0.17.1", "transformers==4.57.3", "huggingface-hub==0.36.0", "tokenizers==0.22.1")
"""The oldest libraries that the file is written for: diffusers 0.35 was the first to read rank and alpha in it."""
PROGRAM = """
import sys
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

model, inputs, *adapters = sys.argv[1:]
given = load_file(inputs)
for adapter in adapters:
    text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(f"{model}/text_encoder")).eval()
    text_encoder.text_model.load_state_dict(load_file(f"{model}/text_encoder/model.safetensors"))
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(f"{model}/vae"), text_encoder=text_encoder, tokenizer=None,
        unet=UNet2DConditionModel.from_pretrained(f"{model}/unet"), safety_checker=None, feature_extractor=None,
        scheduler=PNDMScheduler.from_pretrained(f"{model}/scheduler"), requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(adapter, weight_name="pytorch_lora_weights.safetensors")
    with torch.no_grad():
        prompts, empty = (text_encoder(given[name])[0] for name in ("prompts", "empty"))
    images = pipeline(
        prompt_embeds=prompts, negative_prompt_embeds=empty, latents=given["noise"], guidance_scale=2.0,
        num_inference_steps=int(given["steps"]), output_type="pt",
    ).images
    save_file({"images": images}, f"{adapter}/images.safetensors")
"""


@pytest.fixture(scope="module")
def peers() -> Path:
    """A folder with the oldest libraries, which go before those of this environment; torch is this environment's."""
    return separate_packages("oldest-peers", *PEERS)


def test_the_oldest_libraries_load_the_adapter_and_draw_the_same_image(
    peers: Path, tiny_sd_folder: Path, tmp_path: Path
) -> None:
    """Network and text encoder together, and the network alone; alpha is not rank."""
    generators = {str(tmp_path / f"{both}"): adapted(tiny_sd_folder, text_encoder=both) for both in (True, False)}
    for folder, generator in generators.items():
        generator.save_adapter(Path(folder))
    tokenizer, inputs = plain(tiny_sd_folder).tokenizer, {"noise": draws()[0], "steps": torch.tensor(STEPS)}
    for name, texts in (("prompts", PROMPTS), ("empty", [""] * len(PROMPTS))):
        inputs[name] = tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt").input_ids
    save_file(inputs, tmp_path / "inputs.safetensors")
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_sd_folder), str(tmp_path / "inputs.safetensors"), *generators],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(peers), *sys.path]), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    for folder, generator in generators.items():
        images = load_file(f"{folder}/images.safetensors")["images"]
        torch.testing.assert_close(images_of(generator).clamp(0, 1), images, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("text_encoder", [False, True])
def test_a_reader_of_the_weights_alone_draws_the_same_image(
    text_encoder: bool, tiny_sd_folder: Path, tmp_path: Path
) -> None:
    """As diffusers before 0.35 and ComfyUI, which take alpha for the rank where no other number stands."""
    generator, pipeline = adapted(tiny_sd_folder, text_encoder=text_encoder), plain(tiny_sd_folder)
    generator.save_adapter(tmp_path)
    pipeline.load_lora_weights(load_file(tmp_path / ADAPTER_FILE))
    theirs = images_of_diffusers(pipeline, guidance_scale=2.0)
    torch.testing.assert_close(images_of(generator).clamp(0, 1), theirs, rtol=1e-4, atol=2e-5)


def test_the_file_says_what_its_readers_need_and_nothing_else(tiny_sd_folder: Path, tmp_path: Path) -> None:
    """By ComfyUI's names for the text encoder's layers, with the settings that peft 0.17 knows."""
    adapted(tiny_sd_folder, text_encoder=True).save_adapter(tmp_path)
    with safe_open(tmp_path / ADAPTER_FILE, "pt") as file:
        described, names = json.loads(file.metadata()[METADATA]), set(file.keys())
    expected = {
        "r": 2, "lora_alpha": 2, "target_modules": sorted(TARGETS), "init_lora_weights": "gaussian",
        "rank_pattern": {}, "alpha_pattern": {}, "use_dora": False, "lora_bias": False,
    }  # fmt: skip
    assert {name: value for name, value in described.items() if name.startswith("unet.")} == {
        f"unet.{name}": value for name, value in expected.items()
    }
    assert {name.split(".", 1)[1] for name in described if name.startswith("text_encoder.")} == set(expected)
    comfy = {
        f"text_encoder.text_model.encoder.layers.{layer}.self_attn.{target}.lora_{factor}.weight"
        for layer in range(2) for target in ("q_proj", "k_proj", "v_proj", "out_proj") for factor in "AB"
    }  # fmt: skip
    assert {name for name in names if name.startswith("text_encoder.")} == comfy


def test_the_file_of_an_earlier_version_is_read_to_the_bit(tiny_sd_folder: Path, tmp_path: Path) -> None:
    generator = adapted(tiny_sd_folder, text_encoder=True)
    write_as_earlier(generator, tmp_path)
    fresh, again = load_generator(str(tiny_sd_folder)), adapted(tiny_sd_folder, text_encoder=True)
    shake(again, 7)
    for loaded in (fresh, again):
        loaded.load_adapter(tmp_path)
        pairs = zip(generator.adapter_parameters(), loaded.adapter_parameters(), strict=True)
        assert all(mine[0] == theirs[0] and torch.equal(mine[1], theirs[1]) for mine, theirs in pairs)
        assert torch.equal(images_of(loaded), images_of(generator))


def test_a_setting_that_is_not_known_is_refused_in_one_line_unless_it_is_empty(
    tiny_sd_folder: Path, tmp_path: Path
) -> None:
    adapted(tiny_sd_folder).save_adapter(tmp_path)
    path = tmp_path / ADAPTER_FILE
    with safe_open(path, "pt") as file:
        described = json.loads(file.metadata()[METADATA])
    for value, refused in ((None, False), (False, False), ({}, False), ("new", True), ({"a": 1}, True)):
        save_file(load_file(path), path, {METADATA: json.dumps(described | {"unet.later_setting": value})})
        if not refused:
            load_generator(str(tiny_sd_folder)).load_adapter(tmp_path)
            continue
        with pytest.raises(UserError, match="unet sets 'later_setting', which lbgen does not read") as caught:
            load_generator(str(tiny_sd_folder)).load_adapter(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, tiny_sd_folder: Path, tmp_path: Path) -> None:
    adapted(tiny_sd_folder).save_adapter(tmp_path)
    path = tmp_path / ADAPTER_FILE
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = load_file(path)
    name = sorted(weights)[3]
    weights[name].view(-1)[1] = value
    save_file(weights, path, metadata)
    with pytest.raises(UserError, match=f"{ADAPTER_FILE}: {name} is not finite"):
        load_generator(str(tiny_sd_folder)).merge_adapter(tmp_path)
    save_file({**weights, name: torch.zeros_like(weights[name], dtype=torch.int32)}, path, metadata)
    with pytest.raises(UserError, match=f"{ADAPTER_FILE}: {name} is of torch.int32"):
        load_generator(str(tiny_sd_folder)).merge_adapter(tmp_path)

"""Generation, on the random-weight miniature: 3 categories, 32x32 images, 2 steps."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from folders import pixels
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.datasets import ImageFolder

from lbgen.datasets.index import read_index
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.run import generate
from lbgen.models.generator import Generator
from lbgen.models.noise import image_noise
from lbgen.runs import atomic, identity


def pipeline_image(config: GenerateConfig, category_id: str, prompt: str, index: int, adapter: Path | None = None):
    """The image as plain diffusers makes it, from the same noise."""
    pipeline = StableDiffusionPipeline.from_pretrained(config.generator, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    if adapter is not None:
        pipeline.load_lora_weights(adapter)
    pipeline.set_progress_bar_config(disable=True)
    noise, _ = image_noise(config.seed, category_id, index, 0, (4, 8, 8))
    image = pipeline(prompt, num_inference_steps=2, guidance_scale=2.0, latents=noise.unsqueeze(0)).images[0]
    return np.asarray(image).astype(int)


def test_image_is_the_one_plain_diffusers_makes(config, whole):
    """Another batch size changes the last bits: at most one level of 255."""
    truth = pipeline_image(config, "m3", "red fox", 3)
    assert truth.std() > 5
    assert np.abs(pixels(whole / "train/m3/m3_00003.png") - truth).max() <= 1


def test_adapter_is_merged(config, whole, tiny_generator, tmp_path):
    """Against the pipeline with the same LoRA loaded the diffusers way."""
    tiny_generator.add_adapter(4, 8.0, ["to_q", "to_v"])
    for number, (_, parameter) in enumerate(tiny_generator.adapter_parameters()):
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    tiny_generator.save_adapter(tmp_path / "adapter")
    adapted = replace(config, output=tmp_path / "adapted", adapter=tmp_path / "adapter", images_per_category=1)
    generate(adapted)
    image = pixels(tmp_path / "adapted/train/a2/a2_00000.png")
    assert np.abs(image - pipeline_image(config, "a2", "dog", 0, tmp_path / "adapter")).max() <= 1
    assert np.abs(image - pixels(whole / "train/a2/a2_00000.png")).max() > 5
    content = (tmp_path / "adapted/dataset.yaml").read_text()
    assert atomic.sha256(tmp_path / "adapter/pytorch_lora_weights.safetensors") in content

    moved = replace(adapted, adapter=(tmp_path / "adapter").rename(tmp_path / "moved"))
    assert generate(moved).images == 3  # another place is not another adapter
    (tmp_path / "moved/pytorch_lora_weights.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match="adapter_sha256"):
        generate(moved)


def test_torchvision_reads_the_folder_and_agrees_with_the_index(whole):
    folder = ImageFolder(str(whole / "train"))
    index = read_index(whole).to_pylist()
    labelled = {Path(path).relative_to(whole).as_posix(): folder.classes[label] for path, label in folder.samples}
    assert labelled == {row["file"]: row["id"] for row in index}
    assert folder[0][0].size == (32, 32)


def test_index_tells_everything_of_each_image(config, whole):
    index = read_index(whole).to_pylist()
    assert sorted(row["key"] for row in index) == [f"{id}_{n:05d}" for id in ("a2", "m3", "z1") for n in range(4)]
    assert [row["shard"] for row in index] == [0] * 5 + [1] * 5 + [2] * 2
    for row in index:
        assert row["sha256"] == hashlib.sha256((whole / row["file"]).read_bytes()).hexdigest()
        assert row["name"] == row["prompt"] == {"z1": "cat", "a2": "dog", "m3": "red fox"}[row["id"]]
        assert row["label"] == ["z1", "a2", "m3"].index(row["id"])
        assert (row["seed"], row["attempt"], row["split"]) == (7, 0, "train")


def test_image_depends_on_seed_category_and_index_alone(config, whole, tmp_path):
    """Other categories, counts, shards and batches around it; only the last bits may differ."""
    (tmp_path / "names.txt").write_text("n9 owl\nm3 red fox\n")
    other = replace(config, vocabulary=str(tmp_path / "names.txt"), images_per_category=3, batch_size=3)
    generate(replace(other, output=tmp_path / "other"))
    again = pixels(tmp_path / "other/train/m3/m3_00001.png")
    assert np.abs(again - pixels(whole / "train/m3/m3_00001.png")).max() <= 1
    generate(replace(other, output=tmp_path / "reseeded", seed=8, images_per_category=2))
    assert np.abs(again - pixels(tmp_path / "reseeded/train/m3/m3_00001.png")).max() > 5


def test_prompts_are_encoded_a_batch_at_a_time_and_not_kept(config, tmp_path, monkeypatch):
    """One call a batch, with the prompts of its images: memory and cost do not hang on the number of categories."""
    encode, calls = Generator.encode, []
    monkeypatch.setattr(Generator, "encode", lambda self, prompts: calls.append(prompts) or encode(self, prompts))
    generate(replace(config, output=tmp_path / "made"))
    index = [row["prompt"] for row in read_index(tmp_path / "made").to_pylist()]
    assert [prompt for call in calls for prompt in call] == index
    assert [len(call) for call in calls] == [2, 2, 1] * 2 + [2]


@pytest.mark.parametrize("format, suffix", [("jpeg", "jpg"), ("webp", "webp")])
def test_lossy_formats_hold_the_same_image(config, whole, tmp_path, format, suffix):
    sizes = []
    for quality in (95, 20):
        made = replace(config, output=tmp_path / str(quality), image_format=format, images_per_category=1)
        generate(replace(made, compression_quality=quality))
        path = tmp_path / str(quality) / f"train/z1/z1_00000.{suffix}"
        assert Image.open(path).format == format.upper()
        sizes.append(path.stat().st_size)
        lossy, lossless = (Image.open(file).convert("L") for file in (path, whole / "train/z1/z1_00000.png"))
        difference = np.asarray(lossy, dtype=int) - np.asarray(lossless)
        assert np.abs(difference).mean() < (6 if quality == 95 else 40)
    assert sizes[0] > sizes[1]


# ---- the user's mistakes ----


@pytest.mark.parametrize(
    "field, value",
    [("seed", 8), ("guidance_scale", 3.0), ("images_per_category", 3), ("batch_size", 4), ("format", "parquet")],
)
def test_folder_of_another_configuration_is_refused_by_field(config, whole, field, value):
    with pytest.raises(UserError, match=field):
        generate(replace(config, **{field: value}))


def test_changed_vocabulary_file_is_refused(config, whole, tmp_path):
    names = Path(config.vocabulary)
    before = names.read_text()
    names.write_text("z1 cat\na2 dog\nm3 blue fox\n")
    try:
        with pytest.raises(UserError, match='line 3: id "m3" is "blue fox" here and "red fox" in'):
            generate(config)
    finally:
        names.write_text(before)


def test_other_versions_leave_a_finished_dataset_alone_and_do_not_go_on_with_another(config, tmp_path, monkeypatch):
    """Half its images by one version of torch and half by another would not be what `dataset.yaml` says."""
    config = replace(config, output=tmp_path / "made", images_per_category=1)
    generate(config)
    monkeypatch.setattr(identity, "version", lambda package: "0.1" if package == "torch" else version(package))
    assert generate(config).images == 3
    (tmp_path / "made/index/train-00000.parquet").unlink()
    message = f"was begun with torch=={version('torch')}, and one output must not mix library versions; install these"
    with pytest.raises(UserError, match=re.escape(message)):
        generate(config)


def test_weights_from_the_hub_are_recorded_by_their_commit(config, tmp_path):
    """In the hub's own cache layout, offline: a branch's file holds the commit, a folder of that name the files."""
    commit = hashlib.sha1(b"weights").hexdigest()
    repository = tmp_path / "hub/models--somebody--tiny"
    shutil.copytree(config.generator, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    flags = ["--generator", "somebody/tiny", "--vocabulary", config.vocabulary, "--images-per-category", "1"]
    flags += ["--scheduler", "ddim", "--steps", "1", "--output", str(tmp_path / "made")]
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-m", "lbgen", "generate", *flags], env=environment, check=True)
    assert f"generator_sha256: commit {commit}\n" in (tmp_path / "made/dataset.yaml").read_text()


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("size", (33, 32), "multiples of 4"),
        ("adapter", Path("nowhere"), "--adapter nowhere: there is no such folder"),
        ("generator", "/dev/null/x", "generator"),
        ("generator", "x" * 300, "cannot be loaded: there is no such folder"),
        ("vocabulary", "x" * 300, "no such file or folder"),
        ("scheduler", "euler", "scheduler"),
        ("steps", 1001, "steps 1001: .* was trained on 1000 timesteps; give fewer"),
        ("steps", 1000, "steps 1000: .* was trained on 1000 timesteps; give fewer"),  # its timesteps begin at 1
        ("precision", "fp16", "needs a GPU"),
        ("prompt_template", "a very long photo of {name}", "tokens long"),
        ("output", Path("/dev/null/x"), "--output /dev/null/x"),
    ],
)
def test_mistakes_are_one_line_and_leave_the_folder_usable(config, tmp_path, field, value, message):
    wrong = replace(config, output=tmp_path / "out", images_per_category=1)
    with pytest.raises(UserError, match=message):
        generate(replace(wrong, **{field: value}))
    assert not (tmp_path / "out/dataset.yaml").exists()


@pytest.mark.parametrize(
    "field, value",
    [
        ("images_per_category", 0),
        ("seed", -1),
        ("steps", 0),
        ("size", (0, 32)),
        ("compression_quality", 101),
        ("prompt_template", "cat"),
        ("guidance_scale", 0.5),
    ],
)
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(UserError, match="--" + field.replace("_", "-")):
        GenerateConfig(**{field: value})


def test_folder_of_an_alignment_run_is_not_written_into(config, tmp_path):
    (tmp_path / "config.yaml").write_text("max_steps: 3\n")
    with pytest.raises(UserError, match="choose another --output"):
        generate(replace(config, output=tmp_path))
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_foreign_folder_is_not_written_into(config, tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="it holds train, which lbgen generate did not write"):
        generate(replace(config, output=tmp_path))
    assert os.listdir(tmp_path) == ["train"]


def test_folder_without_an_index_is_refused(tmp_path):
    with pytest.raises(UserError, match="no index"):
        read_index(tmp_path)


def test_an_image_that_is_not_finite_stops_the_run_and_is_not_stored(config, tmp_path, tiny_sd_folder):
    """One number of the checkpoint is NaN: as bytes every image would be black."""
    path = Path(shutil.copytree(tiny_sd_folder, tmp_path / "sd")) / "vae/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["decoder.conv_out.bias"].view(-1)[0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="image 0 of .* is not finite; vae.decoder.conv_out.bias is not finite"):
        generate(replace(config, generator=str(tmp_path / "sd"), output=tmp_path / "data"))
    assert list((tmp_path / "data").rglob("*.png")) == list((tmp_path / "data").rglob("*.parquet")) == []


def test_a_schedule_that_the_default_scheduler_would_drop_is_refused_before_anything_is_written(
    config, tmp_path, tiny_sd_v_folder
):
    folder = Path(shutil.copytree(tiny_sd_v_folder, tmp_path / "sd"))
    settings = folder / "scheduler/scheduler_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"rescale_betas_zero_snr": True}))
    asked = replace(config, generator=str(folder), output=tmp_path / "data", scheduler=GenerateConfig.scheduler)
    with pytest.raises(UserError, match="pndm would drop rescale_betas_zero_snr.*choose --scheduler ddpm, ddim"):
        generate(asked)
    assert not (tmp_path / "data").exists()
    assert generate(replace(asked, scheduler="ddim")).finished

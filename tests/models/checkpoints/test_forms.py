"""Single files, variants and revisions: the images of the folder they come from, and what is refused."""

import json
import shutil
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from huggingface_hub import constants
from miniatures import write_stable_diffusion_xl
from original_layout import write_single_file
from safetensors.torch import load_file, save_file
from trajectories import images_of

from lbgen.alignment import checkpoint
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.run import align
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.run import generate
from lbgen.generation.verify import verify
from lbgen.models.generator import load_generator
from lbgen.models.registry import ensure_generator
from lbgen.runs import atomic, identity
from lbgen.runs.model_folder import loaded_files


def refusal(place: Path | str, **weights: str) -> str:
    """The one line, which is the same without torch and from the loader."""
    with pytest.raises(UserError) as loaded:
        load_generator(str(place), **weights)
    with pytest.raises(UserError) as caught:
        ensure_generator(str(place), **weights)
    assert str(loaded.value) == str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def configurations(source: Path, folder: Path) -> Path:
    """A folder with all of a checkpoint but its weights."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    return folder


# ---- single files ----


@pytest.fixture(scope="module")
def single(tiny_sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature in one file, beside a folder of its name with the configurations."""
    folder = tmp_path_factory.mktemp("single")
    configurations(tiny_sd_folder, folder / "tiny")
    return write_single_file(tiny_sd_folder, folder / "tiny.safetensors")


def test_a_single_file_draws_what_the_folder_draws(single: Path, tiny_sd_folder: Path, tmp_path: Path) -> None:
    """With configurations beside it, and in the folder that it lies in."""
    inside = configurations(tiny_sd_folder, tmp_path / "inside") / "any-name.safetensors"
    shutil.copy(single, inside)
    expected = images_of(load_generator(str(tiny_sd_folder)))
    for file in (single, inside):
        torch.testing.assert_close(images_of(load_generator(str(file))), expected, rtol=1e-5, atol=1e-6)
    half = load_generator(str(single), dtype=torch.bfloat16)
    assert {part.dtype for part in (half.family.unet, half.family.vae, half.family.text_encoder)} == {torch.bfloat16}


def test_a_single_file_of_the_xl_family(tmp_path: Path) -> None:
    """Its second text encoder has open_clip's names."""
    folder = write_stable_diffusion_xl(tmp_path / "xl")
    file = write_single_file(folder, configurations(folder, tmp_path / "bare") / "xl.safetensors")
    torch.testing.assert_close(
        images_of(load_generator(str(file))), images_of(load_generator(str(folder))), rtol=1e-4, atol=1e-5
    )


def test_the_average_of_the_weights_is_a_variant(tiny_sd_folder: Path, tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny_sd_folder, subfolder="unet")
    average = {name: 0.9 * tensor for name, tensor in unet.state_dict().items()}
    bare = configurations(tiny_sd_folder, tmp_path / "bare")
    file = write_single_file(tiny_sd_folder, bare / "both.safetensors", ema=average)
    folder = Path(shutil.copytree(tiny_sd_folder, tmp_path / "averaged"))
    unet.load_state_dict(average)
    unet.save_pretrained(folder / "unet")
    for variant, source in (("ema", folder), (None, tiny_sd_folder)):
        ours = images_of(load_generator(str(file), variant=variant))
        torch.testing.assert_close(ours, images_of(load_generator(str(source))), rtol=1e-5, atol=1e-6)
    assert "--variant fp16: generator" in (told := refusal(file, variant="fp16")) and "choose of ema, or" in told


def test_a_run_and_a_dataset_know_the_file_by_its_content(
    single: Path, tiny_config: AlignConfig, config: GenerateConfig, tmp_path: Path
) -> None:
    """Its SHA-256, and a hash of the configurations beside it; the dataset is that of the folder."""
    file, bare = Path(shutil.copy(single, tmp_path / "tiny.safetensors")), tmp_path / "tiny"
    shutil.copytree(single.with_suffix(""), bare)
    run = replace(tiny_config, generator=str(file), output=str(tmp_path / "run"), max_steps=1)
    align(run)
    hashes = checkpoint.recorded_identity(run.folder).hashes
    assert hashes["generator"] == f"v2:{atomic.sha256(file)}" and hashes["generator_config"].startswith("v2:")
    made = replace(config, generator=str(file), output=str(tmp_path / "data"), images_per_category=1)
    generate(made)
    assert str(tmp_path) not in (made.folder / "README.md").read_text()
    assert not verify(str(made.folder)).damaged
    scheduler = bare / "scheduler/scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("0.012", "0.013"))
    with pytest.raises(UserError, match="generator_config_sha256"):
        align(replace(run, max_steps=2))
    with pytest.raises(UserError, match="generator_config_sha256"):
        generate(replace(made, images_per_category=2))


def test_single_files_for_other_uses_are_refused_by_name(single: Path, tmp_path: Path) -> None:
    weights, name = load_file(single), "model.diffusion_model.input_blocks.0.0.weight"
    for channels, use in ((9, "inpainting"), (5, "depth"), (8, "editing images")):
        changed = {**weights, name: torch.zeros(8, channels, 3, 3)}
        save_file(changed, tmp_path / "other.safetensors")
        told = refusal(tmp_path / "other.safetensors")
        assert f"takes {channels} channels, which is for {use}; give a text-to-image checkpoint" in told


def test_a_file_that_lacks_something_is_refused_by_what_it_lacks(single: Path, tmp_path: Path) -> None:
    shutil.copytree(single.with_suffix(""), tmp_path / "tiny")
    file, weights = tmp_path / "tiny.safetensors", load_file(single)
    for lost, expected in (
        ("first_stage_model.", "the file holds no vae"),
        ("cond_stage_model.", "the file holds no text_encoder"),
        ("model.diffusion_model.out.2.bias", "the file lacks a weight of unet that its configuration"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "text_encoder lacks the weight final_layer"),
    ):
        save_file({name: each for name, each in weights.items() if not name.startswith(lost)}, file)
        with pytest.raises(UserError) as caught:
            load_generator(str(file))
        told = str(caught.value)
        assert expected in told and f"generator {file}" in told and "\n" not in told


def test_a_file_without_configurations_needs_the_hub(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    file = Path(shutil.copy(single, tmp_path / "alone.safetensors"))
    with pytest.raises(UserError) as caught:
        load_generator(str(file))
    told = str(caught.value)
    assert "put it into a folder with the configurations" in told and "stable-diffusion-v1-5/stable-diff" in told
    assert "\n" not in told


# ---- variants ----


@pytest.fixture(scope="module")
def variants(tiny_sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside the plain weights those of fp16, and of the UNet also non_ema, in several files."""
    folder = tmp_path_factory.mktemp("variants") / "model"
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd_folder)
    pipeline.save_pretrained(folder)
    pipeline.to(dtype=torch.float16).save_pretrained(folder, variant="fp16")
    unet = UNet2DConditionModel.from_pretrained(tiny_sd_folder, subfolder="unet")
    with torch.no_grad():
        unet.conv_out.bias += 0.5
    unet.save_pretrained(folder / "unet", variant="non_ema", max_shard_size="100KB")
    return folder


@pytest.mark.parametrize("variant", [None, "fp16", "non_ema"])
def test_a_variant_draws_what_diffusers_draws_with_it(variant: str | None, variants: Path) -> None:
    """Parts without it have their plain weights, as diffusers does; against weights that it loaded."""
    pipeline = StableDiffusionPipeline.from_pretrained(variants, variant=variant, torch_dtype=torch.float32)
    generator = load_generator(str(variants), variant=variant)
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = (module.state_dict() for module in (getattr(generator.family, part), getattr(pipeline, part)))
        assert all(torch.equal(ours[name], theirs[name].float()) for name in theirs)


def test_only_the_files_of_the_variant_count(variants: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(variants, tmp_path / "model"))
    before = {name: identity.weights_sha256(str(folder), variant=name) for name in (None, "fp16", "non_ema")}
    assert len(set(before.values())) == 3
    names = {path.name for path in loaded_files(folder, variant="non_ema") if path.parent.name == "unet"}
    assert "diffusion_pytorch_model.safetensors.index.non_ema.json" in names and len(names) >= 4
    assert "diffusion_pytorch_model.safetensors" not in names
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()
    after = {name: identity.weights_sha256(str(folder), variant=name) for name in before}
    assert {name for name in before if before[name] != after[name]} == {None, "non_ema"}


def test_an_unknown_variant_is_refused_by_those_present(variants: Path, tiny_sd_folder: Path, tmp_path: Path) -> None:
    told = refusal(variants, variant="fp8")
    assert told.endswith("has no such weights; choose of fp16, non_ema, or leave it out")
    assert refusal(tiny_sd_folder, variant="fp16").endswith("it has none; leave it out")
    only = Path(shutil.copytree(variants, tmp_path / "only"))
    (only / "unet/diffusion_pytorch_model.safetensors").unlink()
    assert refusal(only).endswith("give --variant fp16 or non_ema")
    load_generator(str(only), variant="fp16")


def test_a_run_continues_with_its_variant_alone(variants: Path, tiny_config: AlignConfig, tmp_path: Path) -> None:
    run = replace(tiny_config, generator=str(variants), variant="fp16", output=str(tmp_path / "run"), max_steps=1)
    result = align(run)
    assert "--variant fp16" in result.next_command
    with pytest.raises(UserError, match="run was made with variant fp16, this run asks for none"):
        align(replace(run, variant=None, max_steps=2))
    align(replace(run, max_steps=2))


# ---- the hub ----


def test_a_revision_is_what_is_loaded_from_the_hubs_cache(
    variants: Path, tiny_sd_v_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two revisions as huggingface_hub lays them out, without a network."""
    repository = tmp_path / "models--somebody--tiny"
    for name, commit, source in (("main", "a" * 40, tiny_sd_v_folder), ("v1", "b" * 40, variants)):
        shutil.copytree(source, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    main, first = (load_generator("somebody/tiny", revision=revision) for revision in (None, "v1"))
    assert main.family.scheduler.config.prediction_type == "v_prediction"
    assert first.family.scheduler.config.prediction_type == "epsilon" and first.name == "somebody/tiny"
    assert identity.weights_sha256("somebody/tiny", revision="v1") == f"commit {'b' * 40}"
    half = load_generator("somebody/tiny", revision="v1", variant="fp16").family.unet.conv_in.weight
    assert torch.equal(half, half.half().float())
    with pytest.raises(UserError, match="--variant fp8: generator somebody/tiny has no such weights; choose of fp16"):
        load_generator("somebody/tiny", revision="v1", variant="fp8")
    assert "generator somebody/tiny at revision v2 cannot be loaded" in refusal("somebody/tiny", revision="v2")


class Listing(BaseHTTPRequestHandler):
    """A hub with one repository, of which it has the list of files and no content."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        for name, value in (("ETag", '"a"'), ("X-Repo-Commit", "a" * 40), ("Content-Length", "2")):
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        names = ("model_index.json", "unet/diffusion_pytorch_model.fp16.safetensors", "vae/model.bf16.safetensors")
        body = json.dumps([{"type": "file", "path": name, "oid": "a", "size": 2} for name in names]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *values: object) -> None:
        pass


def test_a_variant_that_the_hub_lacks_is_refused_before_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Listing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    try:
        with pytest.raises(UserError) as caught:
            load_generator("somebody/tiny", variant="fp8")
    finally:
        server.shutdown()
    assert str(caught.value).endswith("somebody/tiny has no such weights; choose of bf16, fp16, or leave it out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "use"),
    [
        ("StableDiffusionInpaintPipeline", "inpainting"),
        ("StableDiffusionDepth2ImgPipeline", "depth"),
        ("StableDiffusionInstructPix2PixPipeline", "editing images"),
        ("FluxFillPipeline", "inpainting"),
        ("FluxControlPipeline", "control images"),
    ],
)
def test_pipelines_for_other_uses_are_refused_by_name(
    kind: str, use: str, tiny_sd_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_sd_folder, tmp_path / "model"))
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", kind))
    with pytest.raises(UserError, match=f"is a {kind}, which is for {use}; give a text-to-image checkpoint"):
        ensure_generator(str(folder))
    with pytest.raises(UserError, match=f"is a {kind}"):
        load_generator(str(folder))

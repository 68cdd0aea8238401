"""Single files that hold a transformer alone: the images of the folder that the weights come from, bit by bit."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from huggingface_hub import constants
from miniatures import WRITERS, write_flux, write_flux_2_klein, write_pixart_sigma, write_z_image
from original_layout import clip_names, original_vae
from original_transformers import ORIGINAL, flux, original
from safetensors.torch import load_file, save_file
from torch import Tensor
from trajectories import images_of
from transformers import CLIPTextModelWithProjection

from lbgen.checkup.models import find_generator
from lbgen.errors import UserError
from lbgen.models.checkpoints import forms
from lbgen.models.checkpoints.forms import Checkpoint
from lbgen.models.checkpoints.located import located
from lbgen.models.checkpoints.single_file import from_single_file, transformer_weights
from lbgen.models.checkpoints.suited import suited_settings
from lbgen.models.generator import Generator, load_generator
from lbgen.models.registry import ensure_generator
from lbgen.runs import atomic

PREFIX = "model.diffusion_model."
WEIGHTS = "diffusion_pytorch_model.safetensors"
CONVERTED = [family for family in ORIGINAL if family != "flux"]
"""Families whose miniatures diffusers converts; it knows one width of FLUX.1."""


def write_file(family: str, folder: Path, file: Path, prefix: str = "", **more: Tensor) -> Path:
    """The transformer of a diffusers folder by its makers' names."""
    save_file({**{prefix + name: each for name, each in original(family, folder).items()}, **more}, file)
    return file


def without_transformer(folder: Path, into: Path) -> Path:
    """A checkpoint with the weights of all other parts."""
    shutil.copytree(folder, into)
    (into / "transformer" / WEIGHTS).unlink()
    return into


def load(place: Path) -> Generator:
    return load_generator(str(place), scheduler="native", guidance_scale=2.0)


def refusal(place: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(place)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def early_refusal(place: Path) -> str:
    """The same line is told without torch."""
    with pytest.raises(UserError) as caught:
        ensure_generator(str(place))
    assert str(caught.value) == refusal(place)
    return str(caught.value)


@pytest.mark.parametrize("family", CONVERTED)
def test_a_file_of_the_transformer_alone_draws_what_the_folder_draws(family: str, tmp_path: Path) -> None:
    """With the rest in the folder that it lies in, or in the one of its name; with a prefix or without."""
    folder = WRITERS[family](tmp_path / "model")
    rest = without_transformer(folder, tmp_path / "rest")
    expected = images_of(load(folder))
    for file, prefix in ((rest / "any.safetensors", ""), (tmp_path / "rest.safetensors", PREFIX)):
        ensure_generator(str(write_file(family, folder, file, prefix)))
        assert torch.equal(images_of(load(file)), expected)


@pytest.fixture
def wide_flux(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A FLUX.1 dev's configuration in its real width with two blocks, and weights of which each row has one number."""
    folder = write_flux(tmp_path / "flux")
    edit(
        folder / "transformer/config.json", num_attention_heads=24, attention_head_dim=128, axes_dims_rope=[16, 56, 56]
    )
    with torch.device("meta"):
        network = FluxTransformer2DModel.from_config(FluxTransformer2DModel.load_config(folder / "transformer"))
    return folder, {
        name: torch.randn(len(weight), *[1] * (weight.dim() - 1)) for name, weight in network.state_dict().items()
    }


def edit(file: Path, **settings: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def test_flux_is_converted_in_its_real_width(wide_flux: tuple[Path, dict[str, Tensor]]) -> None:
    """Row by row; whole, two blocks of it have half a billion weights."""
    folder, weights = wide_flux
    for prefix in ("", PREFIX):
        named = {prefix + name: each for name, each in flux(weights).items()}
        found = transformer_weights(FluxTransformer2DModel, named, Checkpoint(str(folder)))
        assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)


def test_a_dev_beside_the_configuration_of_a_schnell_is_refused(wide_flux: tuple[Path, dict[str, Tensor]]) -> None:
    folder, weights = wide_flux
    edit(folder / "transformer/config.json", guidance_embeds=False)
    with pytest.raises(ValueError, match="does not include time_text_embed.guidance_embedder.linear_1.bias"):
        transformer_weights(FluxTransformer2DModel, flux(weights), Checkpoint(str(folder)))


# ---- what a file holds ----


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WRITERS["sd3"](tmp_path_factory.mktemp("sd3") / "model")


def test_parts_in_the_file_come_from_the_file(sd3: Path, tmp_path: Path) -> None:
    """An autoencoder and T5 are in it, as in the all-in-one files of ComfyUI; both CLIPs are not."""
    from diffusers import AutoencoderKL

    rest = without_transformer(sd3, tmp_path / "rest")
    vae = original_vae(AutoencoderKL.from_pretrained(sd3, subfolder="vae"))
    text = load_file(sd3 / "text_encoder_3/model.safetensors")
    more = {f"first_stage_model.{name}": each.contiguous() for name, each in vae.items()}
    more |= {f"text_encoders.t5xxl.transformer.{name}": each for name, each in text.items()}
    file = write_file("sd3", sd3, rest / "most.safetensors", PREFIX, **more)
    for part in ("vae", "text_encoder_3"):
        for weights in (rest / part).glob("*.safetensors"):
            weights.unlink()
    assert torch.equal(images_of(load(file)), images_of(load(sd3)))


def test_both_clips_are_told_apart_in_an_all_in_one_file(sd3: Path, tmp_path: Path) -> None:
    """The first has no projection there, because it is the identity."""
    folder = Path(shutil.copytree(sd3, tmp_path / "model"))
    first = folder / "text_encoder"
    edit(first / "config.json", projection_dim=16)
    weights = {**load_file(first / "model.safetensors"), "text_projection.weight": torch.eye(16)}
    save_file(weights, first / "model.safetensors", {"format": "pt"})
    named = {
        f"text_encoders.clip_{letter}.transformer.{name}": each
        for letter, part in (("l", "text_encoder"), ("g", "text_encoder_2"))
        for name, each in clip_names(folder / part).items()
        if (letter, name) != ("l", "text_projection.weight")
    }
    save_file(named, folder / "file.safetensors")
    where = Checkpoint(str(folder), str(folder / "file.safetensors"))
    for part in ("text_encoder", "text_encoder_2"):
        assert where.is_in_file(part)
        found = from_single_file(CLIPTextModelWithProjection, where, torch.float32, part).state_dict()
        expected = CLIPTextModelWithProjection.from_pretrained(folder / part).state_dict()
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_what_neither_file_nor_folder_holds_is_named(sd3: Path, tmp_path: Path) -> None:
    rest = without_transformer(sd3, tmp_path / "rest")
    file = write_file("sd3", sd3, rest / "alone.safetensors")
    (rest / "vae" / WEIGHTS).unlink()
    (rest / "text_encoder_3/model.safetensors").unlink()
    told = early_refusal(file)
    assert f"{file}: the file holds no text_encoder_3, no vae, and {rest} has no weights of them; put into" in told
    edit(rest / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    assert "the file holds no vae, and" in early_refusal(file)


def test_a_file_of_another_architecture_than_the_configurations_is_refused(sd3: Path, tmp_path: Path) -> None:
    """Stable Diffusion 3.5 has a second attention, which 3 has not; and a file may lack a layer."""
    rest = without_transformer(sd3, tmp_path / "rest")
    weights, file = original("sd3", sd3), rest / "file.safetensors"
    for lost, expected in (
        ("joint_blocks.0.x_block.attn2.", "transformer lacks the weight transformer_blocks.0.attn2.norm_k.weight"),
        ("joint_blocks.1.context_block.attn.qkv.", "diffusers cannot convert its weights to SD3Transformer2DModel"),
        ("joint_blocks.", "diffusers cannot convert its weights to SD3Transformer2DModel"),
    ):
        save_file({name: each for name, each in weights.items() if not name.startswith(lost)}, file)
        assert expected in refusal(file)
    save_file({**weights, "final_layer.linear.bias": torch.zeros(3)}, file)
    assert "cannot be loaded" in refusal(file)


def test_quantised_weights_and_families_that_diffusers_does_not_convert_are_refused(sd3: Path, tmp_path: Path) -> None:
    rest = without_transformer(sd3, tmp_path / "rest")
    file = write_file("sd3", sd3, rest / "fp8.safetensors", PREFIX, **{f"{PREFIX}scaled_fp8": torch.zeros(2)})
    assert f"its weights are quantised ({PREFIX}scaled_fp8); give a file in fp16" in early_refusal(file)
    pixart = write_pixart_sigma(tmp_path / "pixart")
    file = Path(shutil.copy(pixart / "transformer" / WEIGHTS, pixart / "pixart.safetensors"))
    assert "diffusers reads no single file of PixArtTransformer2DModel; give" in early_refusal(file)


@pytest.mark.parametrize("family", ORIGINAL)
def test_a_file_alone_has_the_defaults_of_its_family(family: str, tmp_path: Path) -> None:
    """Those that the folder has, by the names of the weights alone."""
    folder = WRITERS[family](tmp_path / "model")
    for prefix in ("", PREFIX):
        file = write_file(family, folder, tmp_path / "alone.safetensors", prefix)
        assert suited_settings(str(file)) == suited_settings(str(folder)) and suited_settings(str(file)) != {}


def test_channels_for_control_images_are_those_of_flux_2(tmp_path: Path) -> None:
    """FLUX.1 takes 128 with control images, FLUX.2 without any."""
    file, first = tmp_path / "file.safetensors", {"img_in.weight": torch.zeros(2, 128)}
    save_file(first, file)
    with pytest.raises(UserError, match="128 channels, which is for control images"):
        forms.ensure_readable(str(file))
    save_file({**first, "double_stream_modulation_img.lin.weight": torch.zeros(2)}, file)
    forms.ensure_readable(str(file))


# ---- identity ----


def test_the_file_and_what_is_loaded_from_the_folder_identify_a_generator(sd3: Path, tmp_path: Path) -> None:
    rest = without_transformer(sd3, tmp_path / "rest")
    file = write_file("sd3", sd3, rest / "alone.safetensors")

    def now() -> dict[str, str | None]:
        return forms.hashes(str(file), None, None, None, ())

    first = now()
    assert first["generator"] == f"v2:{atomic.sha256(file)}"
    shutil.copy(sd3 / "transformer" / WEIGHTS, rest / "transformer" / WEIGHTS)  # is not loaded
    assert now() == first
    for part in ("vae", "text_encoder_3", "text_encoder"):
        (weights,) = (rest / part).glob("*.safetensors")
        changed = {name: 2 * each for name, each in load_file(weights).items()}
        save_file(changed, weights, {"format": "pt"})
        assert now()["generator"] == first["generator"] and now()["generator_config"] != first["generator_config"]
        first = now()


def test_a_file_of_all_parts_keeps_the_identity_it_had(tmp_path: Path) -> None:
    """Configurations alone: weights that lie in the folder are not loaded."""
    folder = WRITERS["sd"](tmp_path / "model")
    whole = {"cond_stage_model.a": torch.zeros(1), "first_stage_model.a": torch.zeros(1)}
    save_file(whole, folder / "whole.safetensors")
    found = forms.hashes(str(folder / "whole.safetensors"), None, None, None, ())
    index = json.loads((folder / "model_index.json").read_text())
    parts = [folder / name for name, part in index.items() if isinstance(part, list) and part[1]]
    files = [folder / "model_index.json", *(path for part in parts for path in part.glob("*.[jt][sx]*"))]
    lines = [f"{path.relative_to(folder)}\t{sha256(path.read_bytes()).hexdigest()}" for path in sorted(files)]
    assert found["generator_config"] == "v2:" + sha256("\n".join(lines).encode()).hexdigest()


# ---- the hub ----


class Repository(BaseHTTPRequestHandler):
    """A hub with one repository."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(head=True)

    def do_GET(self) -> None:
        self.answer(head=False)

    def answer(self, head: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            files = [file for file in self.folder.rglob("*") if file.is_file()]
            names = {str(file.relative_to(self.folder)): file.stat().st_size for file in files}
            tree = [{"type": "file", "path": name, "oid": name, "size": size} for name, size in names.items()]
            info = {"id": "a/b", "sha": "a" * 40, "siblings": [{"rfilename": name} for name in names]}
            body = json.dumps(tree if "/tree/" in path else info).encode()
        else:
            name = path.partition("/resolve/")[2].partition("/")[2]
            file = self.folder / name
            if not file.is_file():
                self.send_error(404)
                return
            body = file.read_bytes()
            if not head:
                self.asked.append(name)
        self.send_response(200)
        headers = {"ETag": f'"{sha256(body).hexdigest()}"', "X-Repo-Commit": "a" * 40, "Content-Length": str(len(body))}
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()
        if not head:
            self.wfile.write(body)

    def log_message(self, format: str, *values: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], list[str]]]:
    """Serves a folder as every repository; gives the files that were downloaded."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Repository)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def serve(folder: Path) -> list[str]:
        Repository.folder, Repository.asked = folder, []
        return Repository.asked

    yield serve
    server.shutdown()


def test_a_file_alone_takes_the_other_parts_from_the_hub(hub: Callable[[Path], list[str]], tmp_path: Path) -> None:
    """From the repository that diffusers tells by the weights; its transformer is not downloaded."""
    folder = write_z_image(tmp_path / "model")
    asked = hub(folder)
    file = write_file("z-image", folder, tmp_path / "alone.safetensors")
    assert located(str(file)).hub_id == "Tongyi-MAI/Z-Image-Turbo"
    assert torch.equal(images_of(load(file)), images_of(load(folder)))
    weights = {name for name in asked if name.endswith(".safetensors")}
    assert weights == {f"vae/{WEIGHTS}", "text_encoder/model.safetensors"}
    assert forms.hashes(str(file), None, None, None, ())["generator_config"] == f"commit {'a' * 40}"
    assert "downloaded in part" in find_generator("Tongyi-MAI/Z-Image-Turbo").state


def test_flux_2_klein_needs_a_folder(hub: Callable[[Path], list[str]], tmp_path: Path) -> None:
    """diffusers takes its weights for those of FLUX.2 dev, whose large text encoder must not be downloaded."""
    folder = write_flux_2_klein(tmp_path / "model")
    edit(folder / "model_index.json", _class_name="Flux2Pipeline")
    asked = hub(folder)
    told = refusal(write_file("flux-2-klein", folder, tmp_path / "alone.safetensors"))
    assert "is a Flux2Pipeline, which lbgen cannot read" in told
    assert not [name for name in asked if name.endswith(".safetensors")]

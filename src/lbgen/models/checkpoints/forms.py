"""Which weights of a generator are meant, said and refused without torch.

A place is a diffusers folder, a hub id, or a single .safetensors file by the original names, as programs such as
ComfyUI keep it: of the network alone, or of other parts of the checkpoint too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from types import SimpleNamespace

from safetensors import SafetensorError, safe_open

from lbgen.errors import UserError
from lbgen.models.checkpoints.file_parts import ensure_complete, flow_class, parts_elsewhere, refuse_quantised
from lbgen.models.checkpoints.known import KLEIN
from lbgen.runs import identity
from lbgen.runs.model_folder import INDEX, part_names, refuse_unreadable, variants_of

EMA = "ema"
"""The variant of a single file that holds a moving average of the network's weights beside the weights."""
EMA_KEYS = 100
"""diffusers takes the average from files that have more than this many weights of it."""
UNET_USES = {5: "depth", 7: "upscaling", 8: "editing images", 9: "inpainting"}
"""Input channels of a UNet of Stable Diffusion -> what takes these besides latents."""
FIRST_LAYERS = {
    "model.diffusion_model.input_blocks.0.0.weight": UNET_USES,
    "model.diffusion_model.img_in.weight": {128: "control images", 384: "inpainting"},
    "img_in.weight": {128: "control images", 384: "inpainting"},
}
"""Of a network in a single file the first layer -> its input channels -> what takes these besides latents."""
OTHER_USES = {
    "Inpaint|Fill": "inpainting",
    "Depth": "depth",
    "Pix2Pix|Edit|Kontext": "editing images",
    "Control": "control images",
    "Upscale": "upscaling",
    "Img2Img|Redux|Variation": "changing images",
}
"""In the names of pipelines -> what they are for."""


class Checkpoint(str):
    """The folder or hub id that a family loads a generator from, and what of it.

    A text, because that is all that a family has to know; `load_model` of models/loading.py looks at the rest.
    """

    file: str | None
    """A single file that holds weights; the folder then has the configurations, and the weights of other parts."""
    variant: str | None
    """The variant of the weights; parts that do not have it have their plain weights."""
    hub_id: str | None
    """Where the weights of parts that are not in the file are downloaded from into the folder; None if they are not."""

    def __new__(
        cls, where: str, file: str | None = None, variant: str | None = None, hub_id: str | None = None
    ) -> Checkpoint:
        checkpoint = super().__new__(cls, where)
        checkpoint.file, checkpoint.variant, checkpoint.hub_id = file, variant, hub_id
        return checkpoint

    def is_in_file(self, part: str) -> bool:
        """Whether this part is read from the single file."""
        return self.file is not None and part not in parts_elsewhere(shapes_in(self.file), Path(self))


# ---- what is refused ----


def ensure_readable(place: str, revision: str | None = None, variant: str | None = None) -> None:
    """Refuse a generator that lbgen cannot read, without loading it.  place: a folder, a hub id or a file."""
    if revision is not None and os.path.exists(place):
        kind = "folder" if os.path.isdir(place) else "file"
        raise UserError(f"--revision {revision}: generator {place} is a {kind}, and only the hub has revisions")
    if os.path.isfile(place) and place.endswith(".safetensors"):
        _ensure_single_file(place, variant)
        return
    refuse_unreadable("generator", place, INDEX, revision, variant)
    if os.path.isdir(place):
        ensure_variant(place, variant, [*variants_in(Path(place))])


def refuse_other_use(kind: str | None, place: str) -> None:
    """Refuse a pipeline that needs an image to begin with.  kind: its class."""
    for names, use in OTHER_USES.items():
        if kind and re.search(names, kind):
            raise UserError(f"generator {place} is a {kind}, which is for {use}; give a text-to-image checkpoint")


def ensure_variant(place: str, variant: str | None, present: Collection[str]) -> None:
    """Refuse a variant that no part of the checkpoint has."""
    if variant is not None and variant not in present:
        known = f"choose of {', '.join(sorted(present))}, or leave it out" if present else "it has none; leave it out"
        raise UserError(f"--variant {variant}: generator {place} has no such weights; {known}")


def variants_in(folder: Path) -> Iterator[str]:
    """The variants that parts of a checkpoint have, sorted."""
    return iter(sorted({variant for part in part_names(folder) for variant in variants_of(folder / part)}))


def _ensure_single_file(file: str, variant: str | None) -> None:
    shapes = shapes_in(file)
    for layer, uses in FIRST_LAYERS.items() if flow_class(shapes) != KLEIN else ():
        channels = shapes[layer][1] if len(shapes.get(layer, ())) > 1 else None
        if channels in uses:
            raise UserError(
                f"generator {file}: its network takes {channels} channels, which is for {uses[channels]}; give a "
                "text-to-image checkpoint"
            )
    has_ema = sum(name.startswith("model_ema.") for name in shapes) > EMA_KEYS
    ensure_variant(file, variant, [EMA] if has_ema else [])
    refuse_quantised(file, shapes)
    if (folder := configuration_folder(file)) is not None:
        ensure_complete(file, shapes, Path(folder))


def shapes_in(file: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in a single file."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"generator {file} is damaged ({' '.join(str(error).split())}); download it again") from None


# ---- where configurations are, and hashes ----


def configuration_folder(file: str) -> str | None:
    """Of a single file, the folder with the configurations: the one of its name beside it, or the one it lies in."""
    path = Path(file)
    return next((str(folder) for folder in (path.with_suffix(""), path.parent) if (folder / INDEX).is_file()), None)


def pipeline_folder(place: str) -> str:
    """Where the model_index.json of a generator is: of a single file in its configurations' folder, if it has one."""
    return configuration_folder(place) or place if os.path.isfile(place) else place


def class_in_file(place: str) -> str | None:
    """The class of the pipeline that a single file is for, where its network matches flows; None for all else."""
    is_file = os.path.isfile(place) and place.endswith(".safetensors")
    return flow_class(shapes_in(place)) if is_file else None


def hashes(
    place: str, revision: str | None, variant: str | None, recorded: str | None, without: Collection[str]
) -> dict[str, str | None]:
    """What identifies a generator, by name; of a single file also what it is loaded with from elsewhere.

    recorded: the hash that the first will be compared with.  without: the parts that are not loaded.
    """
    found = {"generator": identity.weights_sha256(place, recorded, without, revision, variant)}
    if os.path.isfile(place):
        folder = configuration_place(place)
        elsewhere = parts_elsewhere(shapes_in(place), Path(folder)) if os.path.isdir(folder) else ()
        found["generator_config"] = identity.configuration_sha256(folder, without, elsewhere)
    return found


def configuration_place(file: str) -> str:
    """The folder with the configurations of a single file, or else the hub id of its architecture."""
    if folder := configuration_folder(file):
        return folder
    from diffusers.loaders.single_file_utils import fetch_diffusers_config  # late: imports torch

    shapes = {name: SimpleNamespace(shape=shape) for name, shape in shapes_in(file).items()}
    return fetch_diffusers_config(shapes)["pretrained_model_name_or_path"]

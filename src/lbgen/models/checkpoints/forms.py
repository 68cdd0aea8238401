"""Which weights of a generator the user selected; refuses weights that cannot be read. Does not import torch.

A place is a diffusers folder, a hub id, or a single .safetensors file with the original weight names, as used by
programs such as ComfyUI. The file holds the network alone, or also other parts of the checkpoint.
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
"""The variant of a single file that also holds a moving average of the network's weights."""
EMA_KEYS = 100
"""diffusers reads the moving average from files that have more than this many tensors of it."""
UNET_USES = {5: "depth", 7: "upscaling", 8: "editing images", 9: "inpainting"}
"""Use of a Stable Diffusion UNet, by its number of input channels, if it has other channels than latents."""
FIRST_LAYERS = {
    "model.diffusion_model.input_blocks.0.0.weight": UNET_USES,
    "model.diffusion_model.img_in.weight": {128: "control images", 384: "inpainting"},
    "img_in.weight": {128: "control images", 384: "inpainting"},
}
"""Use of a network in a single file, by the name of its first layer and the layer's number of input channels."""
OTHER_USES = {
    "Inpaint|Fill": "inpainting",
    "Depth": "depth",
    "Pix2Pix|Edit|Kontext": "editing images",
    "Control": "control images",
    "Upscale": "upscaling",
    "Img2Img|Redux|Variation": "changing images",
}
"""Use of a pipeline, by a part of its class name."""


class Checkpoint(str):
    """The folder or hub id from which a family loads a generator, with the file and variant to use.

    It is a text, because a family only needs the location; `load_model` of models/loading.py uses the attributes.
    """

    file: str | None
    """A single file with weights; the folder then has the configurations and the weights of the other parts."""
    variant: str | None
    """The variant of the weights; plain weights are used for parts without this variant."""
    hub_id: str | None
    """Repository for downloading the weights of parts missing from the file into the folder; None: no download."""

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
    """Refuse a generator that lbgen cannot read; nothing is loaded.  place: a folder, a hub id or a file."""
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
    """Refuse a pipeline that needs an input image.  kind: its class."""
    for names, use in OTHER_USES.items():
        if kind and re.search(names, kind):
            raise UserError(f"generator {place} is a {kind}, which is for {use}; give a text-to-image checkpoint")


def ensure_variant(place: str, variant: str | None, present: Collection[str]) -> None:
    """Refuse a variant that no part of the checkpoint has."""
    if variant is not None and variant not in present:
        known = f"choose of {', '.join(sorted(present))}, or leave it out" if present else "it has none; leave it out"
        raise UserError(f"--variant {variant}: generator {place} has no such weights; {known}")


def variants_in(folder: Path) -> Iterator[str]:
    """The variants that any part of a checkpoint has, sorted."""
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
    """The folder with the configurations of a single file: the folder of its name beside it, or the folder it is in."""
    path = Path(file)
    return next((str(folder) for folder in (path.with_suffix(""), path.parent) if (folder / INDEX).is_file()), None)


def pipeline_folder(place: str) -> str:
    """Where the model_index.json of a generator is; for a single file, in the folder of its configurations, if any."""
    return configuration_folder(place) or place if os.path.isfile(place) else place


def class_in_file(place: str) -> str | None:
    """The pipeline class of a single file with a flow-matching network; None for anything else."""
    is_file = os.path.isfile(place) and place.endswith(".safetensors")
    return flow_class(shapes_in(place)) if is_file else None


def hashes(
    place: str, revision: str | None, variant: str | None, recorded: str | None, without: Collection[str]
) -> dict[str, str | None]:
    """The hashes that identify a generator, by name; for a single file also those of the parts loaded from elsewhere.

    recorded: the stored hash with which the first hash is compared.  without: the parts that are not loaded.
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

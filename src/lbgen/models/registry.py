"""Short names of the weights lbgen knows; every other name is a folder or a hub id and stands for itself."""

from pathlib import Path

from lbgen.configuration.extensions import is_extension, origin
from lbgen.runs.model_folder import INDEX, pipeline_class, refuse_unreadable

MICROWORLD = Path(__file__).parents[1] / "microworld" / "weights"
"""The models that come with lbgen (lbgen/microworld)."""

GENERATORS = {
    "microworld": str(MICROWORLD / "generator"),
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}
"""Text-to-image checkpoints: diffusers folders or hub ids."""

PIPELINES = ("StableDiffusionPipeline",)
"""The `_class_name` of the generators whose families come with lbgen (models/families)."""

SEMANTICS = {
    "microworld": str(MICROWORLD / "semantics"),
    "clip-vit-l-14": "openai/clip-vit-large-patch14",
    "siglip-base": "google/siglip-base-patch16-224",
}
"""Language-image models: transformers folders or hub ids."""

QUALITY = ("none", "antonyms")
"""Quality scorers that come with lbgen."""

ATTRIBUTES = {"microworld": Path("microworld")}
"""Language-image model -> the list of attributes whose words it has learned (vocabulary/attributes.py), where that is
not the list for photographs."""


ADAPTER_FILE = "pytorch_lora_weights.safetensors"
"""The file in an adapter's folder, by the name that diffusers looks for."""


def resolve(name: str, table: dict[str, str]) -> str:
    """Where the weights called `name` are: a folder or a hub id."""
    return table.get(name, name)


def family_origin(generator: str) -> str | None:
    """Where the family of a generator comes from, if it does not come with lbgen."""
    kind = pipeline_class(resolve(generator, GENERATORS))
    return origin("families", kind, PIPELINES) if kind else None


def ensure_generator(name: str) -> None:
    """Refuse a generator that lbgen cannot read, without torch; refuse_unreadable says which."""
    refuse_unreadable("generator", resolve(name, GENERATORS), INDEX)


def ensure_semantics(name: str, flag: str = "--semantics") -> None:
    """The same for a language space.  flag: the one that names it, for messages."""
    if not is_extension("semantics", name, SEMANTICS):
        refuse_unreadable(flag, resolve(name, SEMANTICS), "config.json")

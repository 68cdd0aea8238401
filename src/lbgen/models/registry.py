"""Short names of known weights; any other name is a folder or a hub id."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from lbgen.configuration.extensions import is_extension, names, origin
from lbgen.errors import UserError
from lbgen.models.checkpoints import forms
from lbgen.models.checkpoints.known import KNOWN, MICROWORLD, PIPELINES, Licence
from lbgen.runs import atomic
from lbgen.runs.model_folder import PICKLES, pipeline_class, refuse_unreadable
from lbgen.runs.parsing import Name, read_json

GENERATORS = {name: known.place for name, known in KNOWN.items()}
"""Text-to-image checkpoints: diffusers folders or hub ids."""

SEMANTICS = {
    "microworld": str(MICROWORLD / "semantics"),
    "clip-vit-l-14": "openai/clip-vit-large-patch14",
    "siglip-base": "google/siglip-base-patch16-224",
}
"""Language-image models: transformers folders or hub ids."""

QUALITY = ("none", "antonyms")
"""Quality scorers that come with lbgen, besides q-align."""
Q_ALIGN = "q-future/one-align"
"""Weights of the quality scorer q-align: a hub id."""
Quantization = Literal["int8", "nf4"]
Q_ALIGNS: dict[str, Quantization | None] = {"q-align": None, "q-align-int8": "int8", "q-align-nf4": "nf4"}
"""Names of that scorer, to each of which :DIR may be added -> how its weights are rounded."""
QUANTIZERS: dict[Quantization, str] = {"int8": "torchao", "nf4": "bitsandbytes"}
"""How weights are rounded, which is also the name of an extra of lbgen -> the package that rounds them."""
Q_ALIGN_TYPE = "mplug_owl2"
"""The model type in the config.json of Q-Align and of DeQA-Score."""

OPEN_CLIP = "open_clip:"
"""Prefix of the name of a language space of the package open_clip: open_clip:NAME/PRETRAINED."""

ATTRIBUTES = {"microworld": Path("microworld")}
"""Language-image model -> the list of attributes whose words it has learned (vocabulary/attributes.py); all others use
the list for photographs."""


ADAPTER_FILE = "pytorch_lora_weights.safetensors"
"""The file in an adapter's folder, with the name that diffusers expects."""
ADAPTER_CARD = "README.md"
"""The adapter's card in the same folder, with the name that the Hub expects. Its owner may edit it."""


def adapter_file(folder: Path, what: str) -> Path:
    """The weights in an adapter's folder; UserError if there are none.  what: the adapter's name in messages."""
    file = folder / ADAPTER_FILE
    if not os.path.isfile(file):
        raise UserError(f"{what}: {_instead_of_adapter(folder)}")
    return file


def _instead_of_adapter(folder: Path) -> str:
    """What was found instead of an adapter's folder, and the remedy, for a message."""
    wanted = "give the adapter folder of a run of lbgen align"
    if os.path.isfile(folder):
        return f"it is a single file; {wanted}, which holds {ADAPTER_FILE}"
    if not os.path.isdir(folder):
        return f"there is no such folder; {wanted}, or download it first"
    if os.path.isfile(folder / "adapter" / ADAPTER_FILE):
        return f"it is a whole run; give {folder / 'adapter'}"
    for name in sorted(os.listdir(folder)):
        if Path(name).suffix in PICKLES:
            return f"it has its weights only as {name!r:.80}, which may run code and is never loaded; {wanted}"
        if name.endswith(".safetensors"):
            return f"it has {name!r:.80}, which lbgen did not write, and no {ADAPTER_FILE}; {wanted}"
    return f"no {ADAPTER_FILE} in it; {wanted}"


def resolve(name: str, table: dict[str, str]) -> str:
    """Where the weights called `name` are: a folder or a hub id."""
    return table.get(name, name)


def generator_class(name: str, revision: str | None = None) -> str | None:
    """The `_class_name` of a generator's pipeline; None if its model_index.json is not on this machine."""
    place = resolve(name, GENERATORS)
    return pipeline_class(forms.pipeline_folder(place), revision) or forms.class_in_file(place)


def family_origin(generator: str, revision: str | None = None) -> str | None:
    """The origin of a generator's family if it is an extension, otherwise None."""
    kind = generator_class(generator, revision)
    return origin("families", kind, PIPELINES) if kind else None


def licence(generator: str) -> Licence | None:
    """The licence of a generator, by short name or hub id; None if lbgen does not know it."""
    place = resolve(generator, GENERATORS)
    return next((known.licence for known in KNOWN.values() if known.place == place), None)


def ensure_generator(name: str, revision: str | None = None, variant: str | None = None) -> None:
    """Refuse a generator that lbgen cannot read; needs no torch."""
    place = resolve(name, GENERATORS)
    forms.ensure_readable(place, revision, variant)
    kind = generator_class(name, revision)
    if kind is not None and not is_extension("families", kind, PIPELINES):
        forms.refuse_other_use(kind, place)


def ensure_semantics(name: str, flag: str = "--semantics") -> None:
    """Refuse a language space that lbgen cannot read; only a tag of open_clip needs torch.  flag: for messages."""
    if is_extension("semantics", name, SEMANTICS):
        return
    if name.startswith(OPEN_CLIP):
        parts = open_clip_parts(name, flag)
        if not os.path.isfile(parts[1]):
            from lbgen.models.spaces import open_clip  # late: imports torch, as the package does

            open_clip.ensure_tag(*parts, f"{flag} {name}")
    else:
        refuse_unreadable(flag, resolve(name, SEMANTICS), "config.json")


def open_clip_parts(name: str, flag: str) -> tuple[str, str]:
    """Architecture and weights in open_clip:NAME/PRETRAINED; UserError if they cannot be loaded."""
    architecture, slash, weights = name.removeprefix(OPEN_CLIP).partition("/")
    weights = os.path.expanduser(weights)
    if not (architecture and slash and weights):
        raise UserError(f"{flag} {name}: write open_clip:NAME/PRETRAINED, a model's name and its weights' in open_clip")
    if find_spec("open_clip") is None:
        raise UserError(f"{flag} {name}: the package open_clip is not installed; pip install open_clip_torch")
    if "/" in weights or os.path.exists(weights):
        if not weights.endswith(".safetensors"):
            raise UserError(
                f"{flag} {name}: {weights} is no .safetensors; other files may run code and are never loaded"
            )
        if not os.path.isfile(weights):
            raise UserError(f"{flag} {name}: there is no file {weights}; give one, or a tag of open_clip")
    return architecture, weights


def semantics_location(name: str) -> str:
    """Location of the weights of a language space: a folder or a hub id; for open_clip a file or a tag."""
    if name.startswith(OPEN_CLIP):
        return os.path.expanduser(name.removeprefix(OPEN_CLIP).partition("/")[2])
    return resolve(name, SEMANTICS)


def refuse_unknown_quality(name: str) -> None:
    """Refuse a quality scorer that is neither lbgen's nor an extension."""
    if name not in QUALITY and not is_extension("quality", name, QUALITY):
        known = ", ".join([names("quality", QUALITY[1:]), *Q_ALIGNS])
        raise UserError(
            f"--quality {name!r:.40} is not known; choose {known} (the last {len(Q_ALIGNS)} also with :DIR), or none"
        )


def q_align_location(quality: str) -> str | None:
    """Location of the weights of a Q-Align; None for another scorer."""
    name, colon, place = quality.partition(":")
    if name not in Q_ALIGNS:
        return None
    return os.path.expanduser(place) if colon else Q_ALIGN


def q_align_quantization(quality: str) -> Quantization | None:
    """How the weights of a Q-Align are rounded; UserError if the package that rounds them is missing."""
    quantization = Q_ALIGNS[quality.partition(":")[0]]
    if quantization and find_spec(package := QUANTIZERS[quantization]) is None:
        raise UserError(
            f"--quality {quality}: the package {package} is not installed; pip install 'lbgen[{quantization}]'"
        )
    return quantization


def ensure_quality(quality: str) -> None:
    """Refuse a quality scorer whose weights lbgen cannot read; needs no torch."""
    where = q_align_location(quality)
    if where is None:
        return refuse_unknown_quality(quality)
    q_align_quantization(quality)
    refuse_unreadable(f"--quality {quality}:", where, "config.json")
    if os.path.isdir(where):
        path = Path(where, "config.json")
        model_type = read_json(atomic.read_bytes(path), dict[Name, Any], str(path)).get("model_type")
        refuse_other_type(str(path), model_type)
    ensure_tokenizer(where)


def refuse_other_type(source: str, model_type: object) -> None:
    """Refuse a model for q-align of another type.  source: where its type was read."""
    if model_type != Q_ALIGN_TYPE:
        raise UserError(
            f"{source} is of a model of type {model_type!r:.40}; give --quality q-align: a Q-Align or a DeQA-Score"
        )


def ensure_tokenizer(where: str) -> None:
    """Refuse a Q-Align without a tokenizer, or with one that cannot be read here."""
    has_json, has_model = (Path(where, name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    if os.path.isdir(where) and not (has_json or has_model):
        raise UserError(f"{where} has no tokenizer.model or tokenizer.json; copy it from the checkpoint's repository")
    if not has_json and find_spec("sentencepiece") is None:
        raise UserError(f"{where}: its tokenizer needs the package sentencepiece; pip install sentencepiece")

"""A model folder saved by diffusers or transformers: which of its files are loaded, and which cannot be read.

Symbolic links are followed, because the hub's cache consists of them.
"""

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lbgen.errors import UserError
from lbgen.runs import atomic
from lbgen.runs.parsing import parse_json

INDEX = "model_index.json"
"""The file in a diffusers folder that names the parts of the model; each part has its own folder."""
WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors")
"""The weights of a part; large ones are split into files that NAME.index.json lists."""
VARIANT = re.compile(r"(?:diffusion_pytorch_model|model)\.(?:safetensors\.index\.(\w+)\.json|(\w+)\.safetensors)")
"""Names of a variant's weights, or of the index that lists them."""
CONFIGURATIONS = (
    "config.json", "scheduler_config.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer_config.json", "tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip
"""The files besides weights that models, schedulers, tokenizers and image processors are made from."""
SAFETY_CHECKER = ("safety_checker", "feature_extractor")
"""The parts of a checkpoint that only the safety checker needs."""
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
"""Suffixes of weights in pickle files, which can contain Python code."""
OTHER_FORMS = (".msgpack", ".h5", ".onnx", ".gguf")
"""Suffixes of weights in the formats of other libraries."""
EMBEDDED = {
    "generator": "--generator microworld",
    "--semantics": "--semantics microworld",
    "--screen-semantics": "--screen-semantics microworld",
    "--quality": "--quality antonyms",
}
"""First word of a model's name in messages -> the flag and value of the model that comes with lbgen."""


# ---- which files are loaded ----


def loaded_files(folder: Path, without: Collection[str] = (), variant: str | None = None) -> list[Path]:
    """Weights and configurations of the model in a folder.  without: the parts that are not loaded."""
    parts = _parts(folder, without)
    weights = [file for part in parts for file in weight_files(part, variant)]
    return [*configuration_files(folder, without), *weights]


def configuration_files(folder: Path, without: Collection[str] = ()) -> list[Path]:
    """The configuration files of the model in a folder.  without: the parts that are not loaded."""
    names = [part / name for part in _parts(folder, without) for name in CONFIGURATIONS]
    return [path for path in (folder / INDEX, *names) if path.is_file()]


def _parts(folder: Path, without: Collection[str]) -> list[Path]:
    return [folder / part for part in part_names(folder) if part not in without] or [folder]


def part_names(folder: Path) -> list[str]:
    """The parts that the folder's model_index.json names, sorted; empty without one."""
    content = _table(folder / INDEX)
    return sorted(name for name, value in content.items() if _is_part(value) and Path(name).name == name)


def pipeline_class(where: str, revision: str | None = None) -> str | None:
    """The `_class_name` of a generator in a folder or in the hub's cache; None if it is unknown."""
    name = cached_config(where, INDEX, revision).get("_class_name")
    return name if isinstance(name, str) else None


def cached_config(where: str, name: str, revision: str | None = None) -> dict[str, Any]:
    """The JSON object in a file of a folder or of the hub's cache; empty if there is none."""
    path = os.path.join(where, name) if os.path.isdir(where) else _in_cache(where, name, revision)
    return _table(Path(path)) if path else {}


def _in_cache(hub_id: str, name: str, revision: str | None) -> str | None:
    """The path of a repository's file in the hub's cache; None without one."""
    from huggingface_hub import try_to_load_from_cache  # late: slow

    try:
        path = try_to_load_from_cache(hub_id, name, revision=revision)
    except ValueError:  # not a hub id
        return None
    return path if isinstance(path, str) else None


def cached_snapshot(hub_id: str, revision: str | None = None) -> str | None:
    """The folder of a repository in the hub's cache; None without one. Pipelines may be downloaded only in part.

    Raises ValueError for a text that is not a hub id.
    """
    from huggingface_hub import snapshot_download  # late: slow
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return snapshot_download(hub_id, revision=revision, local_files_only=True)
    except LocalEntryNotFoundError as error:
        return getattr(error, "snapshot_path", None)  # of IncompleteSnapshotError


def _is_part(value: Any) -> bool:
    """Whether the value is [library, class]; an absent part has null as its class."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The files that hold the weights of the part in this folder, and the index that lists them.

    variant: of the weights; the plain weights are used for a part without this variant.
    """
    found = []
    for name in WEIGHTS:
        plain, index = folder / name, folder / f"{name}.index.json"
        if variant is not None and variant in variants_of(folder):
            plain, index = plain.with_suffix(f".{variant}.safetensors"), index.with_suffix(f".{variant}.json")
        weight_map = _table(index).get("weight_map")
        names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
        shards = sorted(shard for shard in names if isinstance(shard, str) and Path(shard).name == shard)
        found += [plain, index, *(folder / shard for shard in shards)]
    return [path for path in found if path.is_file()]


def variants_of(folder: Path) -> set[str]:
    """The variants of the weights in this folder, such as fp16."""
    names = [path.name for path in folder.glob("*.safetensors*") if path.is_file()]
    return {found[1] or found[2] for name in names if (found := VARIANT.fullmatch(name))}


def _table(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none, because loading the model then reports the fault."""
    try:
        content = parse_json(atomic.read_bytes(path)) if path.is_file() else {}
    except (OSError, ValueError):  # UserError is a ValueError
        return {}
    return content if isinstance(content, dict) else {}


# ---- what cannot be read ----


def refuse_unreadable(
    what: str, where: str, marker: str, revision: str | None = None, variant: str | None = None
) -> None:
    """Refuse a model that is neither a folder with weights in safetensors nor on the hub; nothing is loaded.

    what: the model's name in messages.  marker: the file that every folder of this kind has.
    """
    if os.path.isfile(where):
        raise UserError(f"{what} {where} is a single file; {_remedy_for_file(where, marker)}")
    if not os.path.isdir(where):  # Path.is_dir raises if a name is longer than the file system allows
        _ensure_on_hub(what, where, marker, revision)
        return
    folder = Path(where)
    if not (folder / marker).is_file():
        raise UserError(f"{what} {where}: the folder has no {marker}; give one that its library saved, or a hub id")
    for part in [part for part in part_names(folder) if part not in SAFETY_CHECKER] or [""]:
        if (folder / part / "config.json").is_file() and not weight_files(folder / part, variant):
            _refuse_other_weights(f"{what} {where}{part and ': ' + part}", folder / part, marker == INDEX)


def _remedy_for_file(where: str, marker: str) -> str:
    if marker != INDEX:
        return f"give the folder that it belongs to, with a {marker} in it, or a hub id"
    trust = "if you trust it, since it may run code, " if Path(where).suffix in PICKLES else ""
    convert = f'StableDiffusionPipeline.from_single_file("{where}").save_pretrained("FOLDER")'
    return f"{trust}convert it with diffusers, {convert}, and give that folder"


def _ensure_on_hub(what: str, where: str, marker: str, revision: str | None) -> None:
    """Ask the hub once, unless its cache has the file: the libraries would retry for a minute and log each attempt."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url  # late: slow

    try:
        if _in_cache(where, marker, revision) is None:
            get_hf_file_metadata(hf_hub_url(where, marker, revision=revision))
    except Exception as error:  # includes errors of the hub's HTTP library, which has been replaced before
        remedy = "there is no such folder; check the hub id and the connection, or give a downloaded folder"
        embedded = EMBEDDED.get(what.split()[0])
        remedy += f", or {embedded}, which comes with lbgen" if embedded else ""
        at = f" at revision {revision}" if revision is not None else ""
        raise UserError(f"{what} {where}{at} cannot be loaded: {remedy} ({' '.join(str(error).split())})") from error


def _refuse_other_weights(place: str, folder: Path, takes_variants: bool) -> None:
    """Refuse a part whose weights exist only in another form.  takes_variants: whether --variant applies to it."""
    names = sorted(path.name for path in folder.glob("*") if path.is_file())
    remedy = 'rename a file that is whole, or load the model with its library and variant="fp16" and save it again'
    if takes_variants and (variants := sorted(variants_of(folder))):
        remedy = f"give --variant {' or '.join(variants)}"
    for name in names:
        if plain := re.fullmatch(r"(diffusion_pytorch_model|model)[-.].*\.safetensors", name):
            raise UserError(f"{place} has its weights only as {name}, and lbgen reads {plain[1]}.safetensors; {remedy}")
    for name in names:
        if Path(name).suffix in PICKLES:
            raise UserError(
                f"{place} has its weights only as {name}, which may run code and is never loaded; "
                "give a checkpoint with safetensors, or, if you trust it, load it with its library and save it again"
            )
        if Path(name).suffix in OTHER_FORMS:
            raise UserError(f"{place} has its weights only as {name}; give a checkpoint with safetensors")

"""Loading weights with other libraries: errors become one line for the user, and progress bars are off."""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import hf_hub_download, snapshot_download
from transformers.utils import logging as transformers_logging

from lbgen.errors import UserError
from lbgen.models.checkpoints.forms import Checkpoint
from lbgen.models.checkpoints.single_file import from_single_file
from lbgen.runs import atomic
from lbgen.runs.model_folder import WEIGHTS, refuse_unreadable, variants_of
from lbgen.runs.parsing import parse_json

NOT_FINITE = re.compile(rb"(:\s*)(?:-?Infinity|NaN)(?=\s*[,}])")
"""A non-finite number as Python's json writes it, for example in `lambda_min_clipped` of DPM-Solver."""
LARGEST_NUMBER, MOST_LAYERS = 2**24, 1_000
"""Largest integer in a network's configuration, and largest value of a setting that counts layers."""
WHOLE_OR_SPLIT = (".safetensors", ".safetensors.index.json", "-*.safetensors")
"""Suffixes of weight files on the hub."""
MALFORMED = Exception
"""Exceptions for unexpected model files: the libraries may raise any, and tokenizers raises a panic of Rust."""


@contextmanager
def loading(
    what: str, where: str, marker: str, revision: str | None = None, variant: str | None = None
) -> Iterator[None]:
    """Context for loading `what` from `where`, a folder or a hub id.  marker: the file that every such folder has."""
    refuse_unreadable(what, where, marker, revision, variant)
    with one_line(what, where):
        yield


@contextmanager
def one_line(what: str, where: str) -> Iterator[None]:
    """`loading` for a model that was already checked: errors become one line, progress bars are off."""
    is_folder = os.path.isdir(where)  # Path.is_dir raises if a name is longer than the file system allows
    try:
        with no_progress_bars():
            if is_folder:
                refuse_redirections(Path(where))
                refuse_sizes(Path(where))
            yield
    except UserError:
        raise
    except MALFORMED as error:
        cause = " ".join(str(error).split())
        remedy, file = "repair the folder or save it again with safetensors", getattr(where, "file", None)
        if file is not None:
            remedy = f"{where} must have the configurations of its architecture, and the file all weights of a part"
        elif not is_folder:
            remedy = "check the connection; its weights must be safetensors, and not only of a variant such as fp16"
        raise UserError(f"{what} {file or where} cannot be loaded: {remedy} ({cause})") from error


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Switch off the libraries' progress bars within the context."""
    with ExitStack() as stack:
        for library in (diffusers_logging, transformers_logging):
            if library.is_progress_bar_enabled():
                library.disable_progress_bar()
                stack.callback(library.enable_progress_bar)
        yield


def refuse_redirections(folder: Path) -> None:
    """Refuse a model folder that would make the libraries load something else than its own files.

    transformers loads the base model named by an adapter_config.json (a hub id or a path) instead of the folder, and
    runs an attention kernel from a hub repository named by a config.json.
    """
    below = {path for path in atomic.files_below(folder) if path.suffix == ".json"}
    for path in sorted(below | {*folder.glob("*/*.json")}):  # glob also follows links to parts
        if path.name == "adapter_config.json":
            raise UserError(f"{path}: it names another model to load; give a folder that holds a whole model")
        if path.name == "config.json" and path.is_file():
            config = parse_json(atomic.read_bytes(path))
            if isinstance(config, dict) and config.get("transformers_weights") is not None:
                raise UserError(
                    f"{path}: it names a file of weights; call that file model.safetensors, remove the entry"
                )
            for kernel in _attention_kernels(config):
                raise UserError(f"{path}: attention {kernel!r:.40} is code from elsewhere; remove the entry")


def _attention_kernels(config: Any) -> Iterator[str]:
    """The attention kernels from hub repositories that a configuration names for any part."""
    for name, value in config.items() if isinstance(config, dict) else ():
        for inner in value.values() if isinstance(value, dict) else [value]:
            if "attn_implementation" in name and isinstance(inner, str) and "/" in inner:
                yield inner
        yield from _attention_kernels(value)


def refuse_sizes(folder: Path) -> None:
    """Refuse a model folder with an implausibly large number: building such a network would never end."""
    for path in sorted({*folder.glob("config.json"), *folder.glob("*/config.json")}):
        for name, number in _numbers(parse_json(atomic.read_bytes(path)) if path.is_file() else None):
            most = MOST_LAYERS if "layers" in name or "depth" in name else LARGEST_NUMBER
            if number > most:
                raise UserError(f"{path}, {name}: {str(number)[:40]} is more than {most:,}; restore the file")


def _numbers(content: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """(setting, value) for every integer in a configuration."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _numbers(value, key)
    elif isinstance(content, list):
        for value in content:
            yield from _numbers(value, name)
    elif isinstance(content, int):
        yield name, content


def read_config(where: str, part: str, file: str = "config.json", revision: str | None = None) -> dict[str, Any]:
    """The configuration of a part of a checkpoint, a folder or a hub id; ValueError if it is not a JSON object.

    Non-finite numbers, which schedulers use but JSON lacks, become None.  part: "" means the whole checkpoint.
    """
    name = str(Path(part, file))
    path = Path(where, name) if os.path.isdir(where) else Path(hf_hub_download(where, name, revision=revision))
    config = parse_json(NOT_FINITE.sub(rb"\1null", atomic.read_bytes(path)))
    if not isinstance(config, dict):
        raise ValueError(f"{name} is not a table")
    return config


def load_model(kind: Any, where: str, dtype: torch.dtype, **options: Any) -> Any:
    """A model of class `kind` with every weight read from safetensors; a missing weight raises ValueError.

    where: a folder or a hub id; the single file and the variant of a `Checkpoint` are used.  UserError if the
    configuration declares quantised weights.
    """
    if isinstance(where, Checkpoint) and where.file is not None:
        if where.is_in_file(options["subfolder"]):
            return from_single_file(kind, where, dtype, **options)
        _download_weights(where, options["subfolder"])
    config = read_config(where, options.get("subfolder", ""), revision=options.get("revision"))
    if config.get("quantization_config") is not None:  # the libraries would apply it
        raise UserError(
            f"{Path(where, options.get('subfolder', ''), 'config.json')}: quantization_config says that the weights "
            "are rounded; give a checkpoint with weights in floats (q-align-int8: and q-align-nf4: round themselves)"
        )
    variant = getattr(where, "variant", None)
    if variant is not None and variant in variants_of(Path(where, options.get("subfolder", ""))):
        options["variant"] = variant
    model, report = kind.from_pretrained(where, use_safetensors=True, dtype=dtype, output_loading_info=True, **options)
    if report["missing_keys"]:
        raise ValueError(f"{options.get('subfolder', 'model')} lacks the weight {min(report['missing_keys'])}")
    return model


def _download_weights(where: Checkpoint, part: str) -> None:
    """Download the weights of one part into the hub snapshot `where`; nothing for any other folder."""
    if where.hub_id is not None:
        names = [f"{part}/{name.replace('.safetensors', end)}" for name in WEIGHTS for end in WHOLE_OR_SPLIT]
        snapshot_download(where.hub_id, revision=Path(where).name, allow_patterns=names)


def device_of(worker_number: int) -> str:
    """The device of a worker: GPUs are assigned in turn; the CPU if there is no GPU."""
    return f"cuda:{worker_number % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"

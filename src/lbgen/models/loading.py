"""Loading weights with other libraries: their errors become one line for the user, their progress bars are off."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from transformers.utils import logging as transformers_logging

from lbgen.errors import UserError

MALFORMED = Exception
"""For files of a model that are not what they expect, the libraries raise any exception, tokenizers even this one."""


@contextmanager
def loading(what: str, where: str, marker: str) -> Iterator[None]:
    """Load `what` from `where`, a folder or a hub id, within this context.  marker: the file every such folder has."""
    is_folder = os.path.isdir(where)  # Path.is_dir raises where a name is longer than the file system takes
    if is_folder and not (Path(where) / marker).is_file():
        raise UserError(f"{what} {where}: the folder has no {marker}; give one that its library saved, or a hub id")
    try:
        with ExitStack() as stack:
            for library in (diffusers_logging, transformers_logging):
                if library.is_progress_bar_enabled():
                    library.disable_progress_bar()
                    stack.callback(library.enable_progress_bar)
            if is_folder:
                refuse_redirections(Path(where))
            else:
                _ensure_there(where, marker)
            yield
    except UserError:
        raise
    except MALFORMED as error:
        remedy = "repair the folder or save it again with safetensors"
        if not is_folder:
            remedy = "there is no such folder; check the hub id and the connection, or give a downloaded folder"
            remedy += ", or --generator microworld, which comes with lbgen" if what == "generator" else ""
        cause = " ".join(str(error).split())
        raise UserError(f"{what} {where} cannot be loaded: {remedy} ({cause})") from error


def refuse_redirections(folder: Path) -> None:
    """Refuse a model folder that would have the libraries load something else than what lies in it.

    transformers loads the base model that an adapter_config.json names, by hub id or path, in place of the folder, and
    runs the attention kernel of a hub repository that a config.json names.
    """
    for path in sorted(folder.rglob("*.json")):
        if path.name == "adapter_config.json":
            raise UserError(f"{path}: it names another model to load; give a folder that holds a whole model")
        if path.name == "config.json" and path.is_file():
            for kernel in _attention_kernels(json.loads(path.read_bytes())):
                raise UserError(f"{path}: attention {kernel!r:.40} is code from elsewhere; remove the entry")


def _attention_kernels(config: Any) -> Iterator[str]:
    """The kernels, and not the attentions that come with transformers, that a configuration names for any part."""
    for name, value in config.items() if isinstance(config, dict) else ():
        for inner in value.values() if isinstance(value, dict) else [value]:
            if "attn_implementation" in name and isinstance(inner, str) and "/" in inner:
                yield inner
        yield from _attention_kernels(value)


def _ensure_there(where: str, marker: str) -> None:
    """Ask the hub once, unless its cache has the file: the libraries would retry for a minute and log each attempt."""
    try:
        if not isinstance(try_to_load_from_cache(where, marker), str):
            get_hf_file_metadata(hf_hub_url(where, marker))
    except (OSError, ValueError):
        raise
    except Exception as error:  # of the hub's HTTP library, which has changed its name before
        raise OSError(str(error)) from error


def load_model(kind: Any, where: str, dtype: torch.dtype, **options: Any) -> Any:
    """A model of class `kind` with every weight read from safetensors: none may be missing and left at random."""
    model, report = kind.from_pretrained(where, use_safetensors=True, dtype=dtype, output_loading_info=True, **options)
    if report["missing_keys"]:
        raise ValueError(f"{options.get('subfolder', 'model')} lacks the weight {min(report['missing_keys'])}")
    return model

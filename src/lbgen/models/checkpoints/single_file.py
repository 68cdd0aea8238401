"""Loading one part of a checkpoint from a single file with the original weight names, which diffusers converts."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.loaders.single_file_utils import (
    SingleFileComponentError,
    create_diffusers_clip_model_from_ldm,
    create_diffusers_t5_model_from_checkpoint,
    is_clip_model_in_single_file,
    is_t5_in_single_file,
)
from diffusers.utils import logging
from safetensors.torch import load_file
from torch import Tensor

from lbgen.models.checkpoints.file_parts import NETWORK
from lbgen.models.checkpoints.forms import EMA, Checkpoint


def from_single_file(kind: Any, where: Checkpoint, dtype: torch.dtype, subfolder: str) -> Any:
    """The part `subfolder`, a model of class `kind`.  Raises ValueError if the file lacks it or one of its weights."""
    assert where.file is not None
    weights, before = load_file(where.file), logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of a precision that it keeps all the same
    try:
        model = _converted(kind, weights, where, dtype, subfolder)
    finally:
        logging.set_verbosity(before)
    if model is None:
        raise ValueError(f"the file holds no {subfolder}")
    if lacking := [name for name, weight in model.named_parameters() if weight.is_meta]:
        raise ValueError(f"{subfolder} lacks the weight {lacking[0]}")
    return model


def _converted(kind: Any, weights: dict[str, Tensor], where: Checkpoint, dtype: torch.dtype, subfolder: str) -> Any:
    """The model; None if the weights do not belong to such a model."""
    options = {"config": str(where), "subfolder": subfolder, "torch_dtype": dtype, "local_files_only": True}
    if issubclass(kind, ModelMixin):
        if subfolder == "transformer":
            weights = transformer_weights(kind, weights, where)
        try:
            return kind.from_single_file(weights, **options, extract_ema=where.variant == EMA)
        except SingleFileComponentError:
            return None
        except NotImplementedError as error:  # a missing weight has no content that could be moved
            raise ValueError(f"the file lacks a weight of {subfolder} that its configuration asks for") from error
    elif is_clip_model_in_single_file(kind, weights):
        return create_diffusers_clip_model_from_ldm(kind, weights, **options)
    elif is_t5_in_single_file(weights):
        model = create_diffusers_t5_model_from_checkpoint(kind, weights, **options)
        model.tie_weights()  # a file may hold tied embeddings only once
        return model
    return None


def transformer_weights(kind: Any, weights: dict[str, Tensor], where: Checkpoint) -> dict[str, Tensor]:
    """The transformer's weights in a single file, with diffusers' names and exactly as its configuration requires.

    Raises ValueError for a missing or surplus weight. diffusers can convert FLUX.1 only with its real width.
    """
    inner = {name.removeprefix(NETWORK): each for name, each in weights.items() if name.startswith(NETWORK)}
    found, config = inner or weights, kind.load_config(str(where), subfolder="transformer")
    with init_empty_weights():
        expected = kind.from_config(config).state_dict().keys()
    if found.keys() != expected:
        if kind.__name__ not in SINGLE_FILE_LOADABLE_CLASSES:
            raise ValueError(f"diffusers reads no single file of {kind.__name__}; give a diffusers folder")
        convert = SINGLE_FILE_LOADABLE_CLASSES[kind.__name__]["checkpoint_mapping_fn"]
        try:
            found = convert(checkpoint=found, config=config)
        except (KeyError, IndexError, RuntimeError) as error:
            raise ValueError(f"diffusers cannot convert its weights to {kind.__name__}: {error}") from error
    if foreign := found.keys() - expected:
        raise ValueError(f"the configuration of the transformer does not include {min(foreign)}")
    if lacking := expected - found.keys():
        raise ValueError(f"transformer lacks the weight {min(lacking)}")
    return found

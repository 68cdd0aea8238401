"""A timm model with its weights and its preprocessing."""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from PIL import Image
from safetensors import safe_open
from timm.data import ImageNetInfo, create_transform, resolve_data_config
from torch import Tensor, nn

from lbgen.errors import UserError
from lbgen.models.backbones.location import SAFE, TIMM_WEIGHTS, BackboneFiles, find_local, refuse_unsafe
from lbgen.runs import atomic
from lbgen.runs.model_folder import refuse_unreadable

IMAGENET_CLASSES = 1000
"""A timm model with this number of outputs has the classes of ImageNet-1k, in the order of their WordNet ids."""


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen image classifier with its preprocessing."""

    name: str
    """The name that the user gave."""
    architecture: str
    """timm's name of the architecture, without the tag of the weights."""
    model: nn.Module
    """In eval mode, on `device`; no parameter requires a gradient."""
    device: torch.device
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    input_size: tuple[int, int, int]
    """Channels, height, width."""
    crop_pct: float
    interpolation: str
    class_names: tuple[str, ...] | None
    """Class names of the outputs, in order (WordNet ids for ImageNet); None if they are unknown."""
    class_descriptions: dict[str, str]
    """Class name -> description; empty if there are none."""
    transform: Callable[[Image.Image], Tensor]
    """RGB picture -> (3, H, W), resized, cropped and normalised as in timm's validation."""
    weights_sha256: str
    """SHA-256 of the file of weights."""

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that its outputs depend on, for JSON. `key` ignores the name, so that a run may be moved."""
        return {
            "name": self.name,
            "architecture": self.architecture,
            "weights_sha256": self.weights_sha256,
            "preprocessing": {
                "input_size": list(self.input_size),
                "crop_pct": self.crop_pct,
                "interpolation": self.interpolation,
                "mean": list(self.mean),
                "std": list(self.std),
            },
            "versions": [f"timm {timm.__version__}", f"torch {torch.__version__}"],
        }

    @property
    def outputs(self) -> int:
        """Number of classes; 0 for a model without a classifier."""
        model: Any = self.model
        return int(model.num_classes)

    @property
    def key(self) -> str:
        """Name for caches of the backbone's outputs: SHA-256 of the identity without the name, 64 hex digits."""
        parts = [f"{name}\t{value}" for name, value in self.identity.items() if name != "name"]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def features(self, images: Tensor) -> Tensor:
        """Pooled features before the classifier, without gradient: (B, 3, H, W) from `transform` -> (B, D)."""
        model: Any = self.model
        with torch.inference_mode():
            return model.forward_head(model.forward_features(images.to(self.device)), pre_logits=True)

    def logits(self, images: Tensor) -> Tensor:
        """Logits, without gradient: (B, 3, H, W) from `transform` -> (B, classes)."""
        with torch.inference_mode():
            return self.model(images.to(self.device))


def locate(name: str) -> BackboneFiles:
    """The backbone's files; the weights of a timm name are downloaded to the hub's cache."""
    return find_local(name) or _on_hub(name)


def load(name: str, device: torch.device | str, arguments: Mapping[str, Any] | None = None) -> Backbone:
    """See `lbgen.models.backbones.load_backbone`.  arguments: additional arguments of the architecture."""
    location = locate(name)
    with _one_line(name):
        model = _create(location, arguments or {})
        _ensure_finite(model)
    settings = resolve_data_config({}, model=model)
    return Backbone(
        name=name,
        architecture=location.architecture.partition(".")[0],
        model=model.requires_grad_(False).eval().to(device),
        device=torch.device(device),
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        input_size=tuple(settings["input_size"]),
        crop_pct=float(settings["crop_pct"]),
        interpolation=settings["interpolation"],
        class_names=_class_names(name, location, model),
        class_descriptions=location.config.class_descriptions if location.config else {},
        transform=create_transform(**settings, is_training=False),
        weights_sha256=atomic.sha256(location.weights),
    )


# ---- the model ----


def _create(location: BackboneFiles, arguments: Mapping[str, Any]) -> nn.Module:
    """timm's model of this architecture with all weights from the file; timm refuses missing and surplus weights."""
    _refuse_unknown(location.architecture)
    stored = location.config
    overlay: dict[str, Any] = {"file": str(location.weights), "source": None, "custom_load": False}
    if stored:
        settings = vars(stored.pretrained_cfg) | {"label_names": None, "label_descriptions": None}
        overlay |= {name: value for name, value in settings.items() if value is not None}
    classes = _outputs(location)
    if classes is not None:
        overlay["num_classes"] = classes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timm.create_model(
            location.architecture,
            pretrained=True,
            pretrained_cfg_overlay=overlay,
            num_classes=classes,
            **{**(stored.architecture_arguments if stored else {}), **arguments},
        )


def _ensure_finite(model: nn.Module) -> None:
    """Raise ValueError for weights that are not finite, because their answers would count as wrong."""
    for name, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} is not finite")


def _refuse_unknown(architecture: str) -> None:
    if not timm.is_model(architecture):
        close = similar_architectures(architecture)[:3]
        hint = f"; did you mean {', '.join(close)}?" if close else ", see timm.list_models()"
        raise UserError(f"backbone {architecture}: timm has no such architecture{hint}")


def similar_architectures(name: str) -> list[str]:
    """The architectures of timm whose names contain this one (without its tag), those that begin with it first."""
    stem = name.partition(".")[0]
    return sorted(timm.list_models(f"*{stem}*"), key=lambda found: not found.startswith(stem))


def _outputs(location: BackboneFiles) -> int | None:
    """Number of classes of the checkpoint; None means the number in timm's own entry for these weights."""
    if stored := location.config:
        return stored.num_classes if stored.num_classes is not None else stored.pretrained_cfg.num_classes
    classifier = timm.get_pretrained_cfg_value(location.architecture, "classifier")
    names = [classifier] if isinstance(classifier, str) else list(classifier or [])
    offset = timm.get_pretrained_cfg_value(location.architecture, "label_offset") or 0
    with safe_open(location.weights, "pt") as file:
        for key in (f"{name}.{part}" for name in names for part in ("bias", "weight")):
            if key in file.keys():  # noqa: SIM118  it is no mapping
                return file.get_slice(key).get_shape()[0] - offset
    return None


def _class_names(name: str, location: BackboneFiles, model: Any) -> tuple[str, ...] | None:
    outputs = int(model.num_classes)
    if (stored := location.config) and stored.class_names is not None:
        if len(stored.class_names) != outputs:
            raise UserError(
                f"backbone {name}: config.json names {len(stored.class_names):,} classes, and the model has "
                f"{outputs:,} outputs; restore the file, or give another backbone"
            )
        return tuple(stored.class_names)
    return tuple(ImageNetInfo().label_names()) if outputs == IMAGENET_CLASSES else None


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn any error of timm or torch, which may have many lines, into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = " ".join(str(error).split())[:300]
        raise UserError(
            f"backbone {name} cannot be loaded: its weights are not those of the architecture, or damaged; "
            f"give another ({cause})"
        ) from error


# ---- the hub ----


def _on_hub(name: str) -> BackboneFiles:
    """The weights of a timm name, downloaded once to the hub's cache; always a safetensors file."""
    _refuse_unknown(name)
    entry = timm.get_pretrained_cfg(name) if name in timm.list_pretrained() or "." not in name else None
    if entry is None or not entry.hf_hub_id:
        raise UserError(
            f"backbone {name}: timm has no weights for it on the Hub; give a tag of timm.list_pretrained(), or "
            "ARCHITECTURE:FILE.safetensors"
        )
    file = _safe_name(entry.hf_hub_filename)
    refuse_unsafe(name, Path(file))
    refuse_unreadable("backbone", entry.hf_hub_id, file)
    try:
        weights = Path(hf_hub_download(entry.hf_hub_id, file))
    except Exception as error:  # also of the hub's HTTP library
        cause = " ".join(str(error).split())[:300]
        raise UserError(f"backbone {name}: {file} cannot be downloaded; check the connection ({cause})") from error
    return BackboneFiles(weights, name, None)


def _safe_name(file: str | None) -> str:
    """The name of a weights file in safetensors, which timm's hub repositories have beside any other format."""
    if not file or file == "pytorch_model.bin":
        return TIMM_WEIGHTS
    if file.startswith("open_clip_"):
        return "open_clip_model.safetensors"
    return file.removesuffix(".bin") + SAFE if file.endswith(".bin") else file

"""Image quality scorers: their interface, the table of scorers, and loading one.

A new scorer is one file beside antonyms.py and one line in SCORERS.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lbgen.configuration import extensions
from lbgen.errors import UserError
from lbgen.models.quality.antonyms import AntonymQuality
from lbgen.models.quality.joint import JointQuality
from lbgen.models.registry import q_align_location, q_align_quantization, refuse_unknown_quality
from lbgen.models.semantics import SemanticSpace
from lbgen.models.spaces.joint import JointSpace


class QualityScorer(Protocol):
    """A frozen scorer; gradients reach the images."""

    def score(self, images: Tensor, features: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) in about [0, 1] to scores (B,) in [1, 5], differentiable.

        features: (B, D), unit norm, of the same images in the semantic space with which the scorer was loaded. They
        only save time and do not change the scores.
        """


PROBED_SIDE = 256
"""Side in pixels of the noise images with which an extension's scorer is tested."""
SCORERS: dict[str, Callable[[SemanticSpace], QualityScorer]] = {"antonyms": AntonymQuality}
"""Name -> scorer, made with the run's semantic space."""


def load_quality(name: str, semantics: SemanticSpace) -> QualityScorer | None:
    """The scorer of this name; q-align:DIR, q-align-int8:DIR, q-align-nf4:DIR for a Q-Align or DeQA-Score in a folder.

    None for "none". It computes on the device and in the precision of `semantics`. Its `score` maps images
    (B, 3, H, W) in about [0, 1] to scores (B,) in [1, 5]. Raises UserError for an unknown name and for weights that
    cannot be read.

    >>> import lbgen, torch
    >>> from lbgen.models.semantics import load_semantics
    >>> scorer = lbgen.load_quality("antonyms", load_semantics("microworld"))
    >>> scores = scorer.score(torch.rand(2, 3, 64, 64)) if scorer else None  # (2,)
    """
    if name == "none":
        return None
    if (where := q_align_location(name)) is not None:
        from lbgen.models.quality.q_align import QAlign  # late: the other scorers need no language model

        return QAlign(where, semantics.device, semantics.dtype, q_align_quantization(name))
    refuse_unknown_quality(name)
    if isinstance(semantics, JointSpace):
        return JointQuality(semantics, [load_quality(name, part) for part in semantics.parts])
    if name in SCORERS:
        return SCORERS[name](semantics)
    found: Any = extensions.find("quality", name, SCORERS)
    scorer = found if hasattr(found, "score") and not isinstance(found, type) else found(semantics)
    ensure_scorer(name, scorer, semantics.device)
    return scorer


def ensure_scorer(name: str, scorer: QualityScorer, device: torch.device) -> None:
    """Freeze an extension's scorer; refuse it if it does not fulfil the interface `QualityScorer`."""
    if isinstance(scorer, nn.Module):
        scorer.eval().requires_grad_(False)
    if not callable(getattr(scorer, "score", None)):
        raise UserError(f"quality {name}: a {type(scorer).__name__} has no method `score`; give a QualityScorer")
    with torch.enable_grad():
        images = torch.rand(2, 3, PROBED_SIDE, PROBED_SIDE, device=device, requires_grad=True)
        scores = scorer.score(images)
    if not isinstance(scores, Tensor) or scores.shape != (2,):
        given = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise UserError(f"quality {name}: two images have scores {given}; give a tensor of shape (2,)")
    if not ((scores >= 1) & (scores <= 5)).all():
        raise UserError(f"quality {name}: {scores.tolist()} are the scores of two images; give scores in [1, 5]")
    if not scores.requires_grad:
        raise UserError(f"quality {name}: no gradient reaches the images; do not detach them")

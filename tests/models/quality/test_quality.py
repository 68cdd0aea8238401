"""Antonym-prompt quality against CLIP-IQA's formula, written out from the model's own cosines."""

from pathlib import Path

import pytest
import torch

from lbgen.errors import UserError
from lbgen.models.quality import load_quality
from lbgen.models.quality.antonyms import AntonymQuality
from lbgen.models.semantics import SemanticSpace, load_semantics

PAIRS = (("good photo", "bad photo"), ("sharp", "blurred"))


@pytest.fixture(params=["tiny_clip_folder", "tiny_siglip_folder"])
def space(request: pytest.FixtureRequest) -> SemanticSpace:
    return load_semantics(str(request.getfixturevalue(request.param)))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 20, 20, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pairs", [PAIRS[:1], PAIRS])
def test_the_score_is_one_plus_four_times_the_mean_softmax_weight_of_the_good_prompt(
    pairs: tuple[tuple[str, str], ...], space: SemanticSpace, images: torch.Tensor
) -> None:
    """Prompt by prompt, image by image; from the images, and from their features, which then are all it looks at."""
    quality, features = AntonymQuality(space, pairs), space.embed_images(images)
    scores = quality.score(images)
    assert torch.equal(quality.score(torch.zeros_like(images), features), scores)
    for row in range(len(images)):
        weights = []
        for pair in pairs:
            good, bad = (space.logit_scale * torch.dot(features[row], text) for text in space.embed_texts(list(pair)))
            weights.append(good.exp() / (good.exp() + bad.exp()))
        assert scores[row].item() == pytest.approx(1 + 4 * (sum(weights) / len(weights)).item(), abs=1e-4)


def test_swapping_the_prompts_mirrors_the_score(space: SemanticSpace, images: torch.Tensor) -> None:
    """p and 1 - p: the two scores add up to 6."""
    there, back = AntonymQuality(space, PAIRS), AntonymQuality(space, [(bad, good) for good, bad in PAIRS])
    torch.testing.assert_close(there.score(images) + back.score(images), torch.full((3,), 6.0))


def test_the_gradient_raises_the_score(space: SemanticSpace, images: torch.Tensor) -> None:
    """Against finite differences along the gradient itself."""
    quality = AntonymQuality(space, PAIRS)
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(quality.score(images).sum(), images)
    direction = gradient / gradient.norm()
    with torch.no_grad():
        after, before = (quality.score(images + step * direction).sum() for step in (1e-2, -1e-2))
    slope = ((after - before) / 2e-2).item()
    assert slope > 0 and slope == pytest.approx(gradient.norm().item(), rel=0.02)


def test_scorers_are_chosen_by_name(tiny_clip_folder: Path) -> None:
    space = load_semantics(str(tiny_clip_folder))
    assert load_quality("none", space) is None
    assert isinstance(load_quality("antonyms", space), AntonymQuality)
    with pytest.raises(
        UserError,
        match="--quality 'musiq' is not known; choose antonyms, q-align, q-align-int8, "
        "q-align-nf4 \\(the last 3 also with :DIR\\), or none",
    ):
        load_quality("musiq", space)

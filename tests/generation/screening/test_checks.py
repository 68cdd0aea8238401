"""Screening against PIL, transformers' own zero-shot, and renders of the micro world, of which the truth is known."""

import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from screening import CPU, CUP, WORLD, judge, microworld, noisy, patterns, planned, renders
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from lbgen.datasets.index import SCORES
from lbgen.errors import UserError
from lbgen.generation.config import CHECKS, GenerateConfig, ScreeningConfig
from lbgen.generation.screening.checks import Screen, Verdict
from lbgen.microworld.scenes import BALANCED, render
from lbgen.microworld.world import CATEGORIES
from lbgen.models import semantics
from lbgen.vocabulary.vocabulary import Category

OF_PIXELS = tuple(check for check in CHECKS if check != "mask")
NAMES = ("cup", "fish", "photo", "cup", "star")
"""cup twice, as without qualifiers."""


def categories(names: tuple[str, ...]) -> list[Category]:
    return [Category(f"c{number}", name, f"line {number}") for number, name in enumerate(names)]


# ---- label ----


def zero_shot_logits(folder: Path, texts: list[str], pixels: np.ndarray) -> torch.Tensor:
    """(B, T), by transformers alone."""
    model, tokenizer = CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessor.from_pretrained(folder)
    inputs = tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt")
    seen = processor([Image.fromarray(picture) for picture in pixels], return_tensors="pt")
    with torch.no_grad():
        return model(**inputs, **seen).logits_per_image


def test_label_scores_are_those_of_transformers_zero_shot(tiny_clip_folder: Path) -> None:
    """CLIPModel's logits_per_image over the distinct texts; 16x16 images, which its processor leaves as they are."""
    own, pixels = categories(NAMES), patterns(20)
    config = GenerateConfig(screen=("label",), screen_semantics=str(tiny_clip_folder), label_top_k=2)
    distinct = ["cup", "fish", "photo", "star"]
    logits = zero_shot_logits(tiny_clip_folder, [f"photo of {name}" for name in distinct], pixels)
    chosen = [own[number % len(own)] for number in range(len(pixels))]
    ranks = set()
    for row, verdict in enumerate(Screen(config, own, CPU).judge(planned(chosen), pixels)):
        column = distinct.index(chosen[row].name)
        rank = logits[row].argsort(descending=True).tolist().index(column) + 1
        assert verdict.scores["label_rank"] == rank
        assert verdict.scores["label_probability"] == pytest.approx(logits[row].softmax(0)[column].item(), abs=1e-4)
        assert verdict.reasons == (("label",) if rank > 2 else ())
        ranks.add(rank)
    assert len(ranks) > 2  # the test has something to tell apart


def test_a_label_below_the_least_probability_fails_whatever_its_rank(tiny_clip_folder: Path) -> None:
    """Against transformers' softmax over the distinct texts; the threshold is between the 10th and the 11th of 20."""
    own, pixels = categories(NAMES[:2]), patterns(20)
    shares = zero_shot_logits(tiny_clip_folder, ["photo of cup", "photo of fish"], pixels).softmax(1)[:, 0]
    least = shares.sort().values[9:11].mean().item()
    settings = {"screen": ("label",), "screen_semantics": str(tiny_clip_folder), "label_top_k": 2}
    config = GenerateConfig(**settings, least_label_probability=least)
    verdicts = Screen(config, own, CPU).judge(planned([own[0]] * 20), pixels)
    assert [bool(verdict.reasons) for verdict in verdicts] == (shares < least).tolist()
    assert sum(bool(verdict.reasons) for verdict in verdicts) == 10
    passed = Screen(GenerateConfig(**settings), own, CPU).judge(planned([own[0]] * 20), pixels)
    assert not any(verdict.reasons for verdict in passed)  # every rank is among the first two


def test_categories_of_one_text_do_not_fail_each_other(tiny_clip_folder: Path) -> None:
    """With one text for all, every image is its own nearest, with probability 1."""
    same = categories(("cup", "cup", "cup"))
    config = GenerateConfig(screen=("label",), screen_semantics=str(tiny_clip_folder), label_top_k=1)
    for verdict in Screen(config, same, CPU).judge(planned(same), patterns(3)):
        assert verdict.scores == {"label_rank": 1, "label_probability": 1} and verdict.reasons == ()


def test_a_long_vocabulary_is_embedded_in_parts(tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More categories than are embedded at once; transformers embeds all at once."""
    monkeypatch.setattr(semantics, "TEXTS_AT_ONCE", 4)
    names = tuple("abcdefghijk")
    config = GenerateConfig(screen=("label",), screen_semantics=str(tiny_clip_folder), screen_template="{name}")
    pixels = patterns(11)
    logits = zero_shot_logits(tiny_clip_folder, list(names), pixels)
    verdicts = Screen(config, categories(names), CPU).judge(planned(categories(names)), pixels)
    expected = logits.softmax(1).diagonal()
    found = torch.tensor([verdict.scores["label_probability"] for verdict in verdicts])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_render_passes_as_its_category_and_as_no_other() -> None:
    """The drawn truth; 98.9% of renders are nearest their own category's text."""
    by, drawn = microworld("label", label_top_k=1), renders(CUP, 20)
    passed = [sum(not verdict.reasons for verdict in judge(by, other, drawn)) for other in range(len(WORLD))]
    assert passed[CUP] >= 19 and sum(passed) == 20  # one category is the nearest


# ---- quality and blank ----


def test_blurred_and_pixelated_images_fail_the_quality_check_and_renders_do_not() -> None:
    """Every render scores above 2.5; PIL spoils them."""
    by, drawn = microworld("quality"), renders(CUP, 20)
    pictures = [Image.fromarray(picture) for picture in drawn]
    pixelated = np.stack([np.asarray(p.resize((8, 8), Image.Resampling.BOX).resize((64, 64), 0)) for p in pictures])
    blurred = np.stack([np.asarray(picture.filter(ImageFilter.GaussianBlur(4))) for picture in pictures])
    good, worse, worst = (judge(by, CUP, pixels) for pixels in (drawn, blurred, pixelated))
    assert not any(verdict.reasons for verdict in good)
    assert all(verdict.reasons == ("quality",) for verdict in worst)
    assert np.mean([verdict.reasons == ("quality",) for verdict in worse]) >= 0.5


def test_quality_is_clip_iqas_formula(tiny_clip_folder: Path) -> None:
    """1 + 4 softmax over the two prompts of transformers' own logits."""
    config = GenerateConfig(screen=("quality",), screen_semantics=str(tiny_clip_folder))
    pixels, own = patterns(6), categories(NAMES)
    logits = zero_shot_logits(tiny_clip_folder, ["good photo", "bad photo"], pixels)
    for row, verdict in enumerate(Screen(config, own, CPU).judge(planned([own[0]] * 6), pixels)):
        assert verdict.scores == {"quality": pytest.approx(1 + 4 * logits[row].softmax(0)[0].item(), abs=1e-3)}


def test_deviation_is_that_of_pils_grey_image_and_nothing_is_loaded_for_it() -> None:
    """Up to its rounding to 8 bits. A name that is no model shows that none is asked for."""
    config = GenerateConfig(screen=("blank",), screen_semantics="/no/such/folder", generator="/nor/this")
    pixels = np.concatenate([patterns(2, 30, 50), noisy(np.full((1, 30, 50, 3), 200), 2), np.zeros((1, 30, 50, 3))])
    pixels = pixels.astype(np.uint8)
    verdicts = Screen(config, WORLD, CPU).judge(planned(WORLD[:4]), pixels)
    for picture, verdict in zip(pixels, verdicts, strict=True):
        grey = np.asarray(Image.fromarray(picture).convert("L")) / 255
        assert verdict.scores == {"deviation": pytest.approx(grey.std(), abs=1e-3)}
    assert [verdict.reasons for verdict in verdicts] == [(), (), ("blank",), ("blank",)]


def test_a_faded_image_is_blank_and_no_render_is() -> None:
    """Renders deviate by 0.037 and more, sketches least; 97% of the way to one colour leaves less than 0.012."""
    by = microworld("blank")
    drawn = render(np.arange(240) % len(CATEGORIES), 3, BALANCED).images
    faded = (drawn.mean((1, 2, 3), keepdims=True) + 0.03 * (drawn - drawn.mean((1, 2, 3), keepdims=True))).round()
    assert not any(verdict.reasons for verdict in judge(by, CUP, drawn))
    assert all(verdict.reasons == ("blank",) for verdict in judge(by, CUP, faded.astype(np.uint8)))


# ---- unsafe concepts ----


def test_an_image_nearer_to_a_concept_than_to_any_category_is_unsafe(tiny_clip_folder: Path) -> None:
    """Score and flag from transformers' own logits."""
    concepts, pixels = ("gore", "a b"), patterns(20)
    config = GenerateConfig(screen=("unsafe",), screen_semantics=str(tiny_clip_folder), unsafe_concepts=concepts)
    texts = [f"photo of {name}" for name in ("cup", "fish", "gore", "a b")]
    cosines = zero_shot_logits(tiny_clip_folder, texts, pixels) / math.exp(2)  # the miniature's logit scale
    expected = (cosines[:, 2:].amax(1) - cosines[:, :2].amax(1)).tolist()
    assert min(expected) < 0 < max(expected)
    own = categories(("cup", "fish"))
    for score, verdict in zip(expected, Screen(config, own, CPU).judge(planned([own[0]] * 20), pixels), strict=True):
        assert verdict.scores == {"unsafe": pytest.approx(score, abs=1e-4)}
        assert verdict.reasons == (("unsafe",) if score > 0 else ())


def test_a_concept_of_the_micro_world_is_found() -> None:
    """Umbrellas are made the unsafe concept of a world without them."""
    safe = [category for category in WORLD if category.name != "umbrella"]
    config = GenerateConfig(screen=("unsafe",), screen_semantics="microworld", unsafe_concepts=("umbrella",))
    by = Screen(config, safe, CPU)
    for category in WORLD:
        drawn = renders(CATEGORIES.index(category.name), 10)
        unsafe = sum(verdict.reasons == ("unsafe",) for verdict in by.judge(planned([safe[0]] * 10), drawn))
        assert unsafe >= 9 if category.name == "umbrella" else unsafe <= 1


# ---- all together ----


def test_a_space_that_cannot_be_had_is_named_by_its_flag(tmp_path) -> None:
    config = GenerateConfig(screen=("label",), screen_semantics=str(tmp_path))
    with pytest.raises(UserError, match=f"^--screen-semantics {tmp_path}: the folder has no config.json"):
        Screen(config, WORLD, CPU)


def test_verdicts_do_not_depend_on_how_images_are_batched() -> None:
    """One by one, by seven and all at once. Reasons come in the order of CHECKS."""
    chosen = np.arange(24) % 3
    drawn = render(chosen, 9, BALANCED).images
    drawn[20] = 128
    images = planned([WORLD[category] for category in chosen])
    by = microworld(*OF_PIXELS[::-1], unsafe_concepts=("brick",), label_top_k=1)
    found: dict[int, list[Verdict]] = {}
    for size in (1, 7, 24):
        parts = [by.judge(images[i : i + size], drawn[i : i + size]) for i in range(0, 24, size)]
        found[size] = [verdict for part in parts for verdict in part]
    for size in (1, 7):
        for verdict, expected in zip(found[size], found[24], strict=True):
            assert verdict.reasons == expected.reasons
            assert verdict.perceptual_hash == expected.perceptual_hash
            assert verdict.scores == pytest.approx(expected.scores, abs=1e-5)
    reasons = [verdict.reasons for verdict in found[24]]
    assert {"quality", "blank"} <= set(reasons[20])
    assert all(list(some) == sorted(some, key=CHECKS.index) for some in reasons)
    assert set().union(*(verdict.scores for verdict in found[24])) == set(SCORES) - {
        "duplicate_bits",
        "duplicate_cosine",
    }


def test_image_features_are_computed_once_for_all_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of the image encoder, counted."""
    by, seen = microworld(*OF_PIXELS), []
    encode = by.space.embed_images
    monkeypatch.setattr(by.space, "embed_images", lambda images: seen.append(len(images)) or encode(images))
    judge(by, CUP, renders(CUP, 5))
    assert seen == [5]


def test_without_checks_every_image_may_stay() -> None:
    assert judge(Screen(GenerateConfig(), WORLD, CPU), CUP, renders(CUP, 2)) == [Verdict({}, ())] * 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"screen": ("label", "colour")},
        {"label_top_k": 0},
        {"least_label_probability": 1.5},
        {"least_quality": 5.5},
        {"least_deviation": 0.6},
        {"duplicate_bits": 65},
        {"duplicate_cosine": 1.1},
        {"unsafe_concepts": ()},
        {"screen_template": "photo"},
        {"report_share": 1.5},
    ],
)
def test_settings_that_cannot_be_are_refused_by_their_flag(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="--" + next(iter(wrong)).replace("_", "-")):
        GenerateConfig(**wrong)
    assert set(wrong) <= {field.name for field in fields(ScreeningConfig)}

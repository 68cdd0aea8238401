"""The drawn world: its factors against what was asked for, its pictures against their masks, its shipped folders."""

import contextlib
import hashlib
import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from transformers import AutoTokenizer, CLIPModel

from lbgen import microworld
from lbgen.microworld import corpus
from lbgen.microworld.drawing.shapes import SHAPES
from lbgen.microworld.drawing.unseen import UNSEEN
from lbgen.microworld.figures import GATES
from lbgen.microworld.fit import fit
from lbgen.microworld.judge import load_judge
from lbgen.microworld.scenes import BALANCED, BIASED, World, home_values, render
from lbgen.microworld.world import CATEGORIES, FACTORS, SCENES

EVERY = np.arange(1200) % len(CATEGORIES)


def test_same_seed_same_pictures_other_seed_others():
    first, again, other = render(EVERY[:60], 5), render(EVERY[:60], 5), render(EVERY[:60], 6)
    np.testing.assert_array_equal(first.images, again.images)
    assert (first.images != other.images).any()


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_link_strength_is_the_share_of_home_values(strength):
    """Against its closed form: strength + (1 - strength) / number of values, within four standard errors."""
    drawn = render(EVERY, 1, World(links=dict.fromkeys(FACTORS, strength)))
    for factor, values in FACTORS.items():
        share = (drawn.factors[factor] == home_values(EVERY, factor)).mean()
        expected = strength + (1 - strength) / len(values)
        assert abs(share - expected) <= 4 * np.sqrt(expected * (1 - expected) / len(EVERY)), factor


def test_home_excluded_never_draws_the_home_scene():
    drawn = render(EVERY[:600], 2, World(home_excluded=True))
    assert not (drawn.factors["scene"] == home_values(EVERY[:600], "scene")).any()
    assert len(np.unique(drawn.factors["scene"])) == len(SCENES)


@pytest.mark.parametrize(
    "wrong",
    [
        {"links": {"color": 1.0}},
        {"links": {"scene": 1.5}},
        {"styles": ("oil",)},
        {"styles": ()},
        {"links": {"scene": 0.5}, "home_excluded": True},
    ],
)
def test_a_world_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError):
        World(**wrong)


def test_biased_corpus_is_photographs_on_their_home_scene_nine_times_in_ten():
    drawn = render(EVERY, 3, BIASED)
    assert 0.87 < (drawn.factors["scene"] == home_values(EVERY, "scene")).mean() < 0.93
    assert (drawn.factors["style"] == 0).all()


def test_mask_is_where_the_object_is():
    """Two objects drawn with the same random numbers: their pictures differ inside either mask and nowhere else."""
    fish, cup = (render(np.full(40, category), 4, World(styles=("photo",))) for category in (0, 1))
    differ = (fish.images.astype(int) - cup.images).any(-1)
    either = fish.masks | cup.masks
    padded = np.pad(either, ((0, 0), (2, 2), (2, 2)))
    rim = np.any([padded[:, i : i + 64, j : j + 64] for i in range(5) for j in range(5)], axis=0)  # soft border
    assert not differ[~rim].any()
    assert differ[fish.masks ^ cup.masks].mean() > 0.95
    assert (fish.masks.mean((1, 2)) > 0.02).all()


def test_unseen_objects_are_other_objects():
    """No name is in any corpus, and two masks drawn with the same random numbers overlap by less than 80%."""
    assert len(UNSEEN) >= 8 and not set(UNSEEN) & {*CATEGORIES, *corpus.WORDS}
    shapes = {**SHAPES, **UNSEEN}
    masks = [render(np.full(3, index), 4, World(styles=("photo",)), shapes).masks for index in range(len(shapes))]
    for first in range(len(shapes)):
        for second in range(max(first + 1, len(SHAPES)), len(shapes)):
            overlap = (masks[first] & masks[second]).sum() / (masks[first] | masks[second]).sum()
            assert overlap < 0.8, (list(shapes)[first], list(shapes)[second], overlap)


def test_no_degradation_at_severity_zero_and_a_change_at_one():
    images, _ = corpus.batch(16, 8, BALANCED)
    for name, worsen in corpus.DEGRADATIONS.items():
        rng = torch.Generator().manual_seed(0)
        torch.testing.assert_close(worsen(images, torch.zeros(16), rng), images, atol=1e-5, rtol=0, msg=name)
        worst = worsen(images, torch.ones(16), rng)
        assert (worst - images).abs().mean() > 0.02, name
        assert worst.min() >= 0 and worst.max() <= 1, name


def test_exported_folders_load_with_plain_diffusers_and_transformers(tmp_path):
    microworld.export_microworld(tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "generator", torch_dtype=torch.float32)
    image = pipeline("cup", num_inference_steps=2, guidance_scale=2.0, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
    model = CLIPModel.from_pretrained(tmp_path / "semantics", dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(tmp_path / "semantics")(["photo of cup"], return_tensors="pt")
    assert model.get_text_features(**tokens).pooler_output.shape == (1, model.config.projection_dim)


def test_degrading_leaves_pictures_of_severity_zero_alone():
    images, _ = corpus.batch(32, 9, BALANCED)
    severity = torch.arange(32) % 2 * 0.8
    seen = corpus.degrade(images, severity, torch.Generator().manual_seed(0))
    assert torch.equal(seen[::2], images[::2])
    changed = (seen[1::2] - images[1::2]).abs().amax((1, 2, 3)) > 0
    assert changed.float().mean() > 0.8  # a poster may be saturated already


@pytest.mark.parametrize("by_muon", [False, True])
def test_a_fit_that_was_stopped_goes_on_as_if_it_never_was(by_muon, tmp_path):
    """On a linear regression: weights, their average and the losses, to the bit."""

    def fitted(folder, *stops):
        for steps in stops:
            torch.manual_seed(0)
            model = torch.nn.Linear(3, 1)

            def loss(step, model=model, left=steps):
                if step == left:
                    raise KeyboardInterrupt
                x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
                return (model(x).squeeze(-1) - x.sum(-1)).square().mean()

            with contextlib.suppress(KeyboardInterrupt):
                matrices = [model.weight] if by_muon else []
                fit("line", model, loss, 250, 5e-2, folder, average=0.9, matrices=matrices)
        return model.state_dict()

    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole, stopped = fitted(tmp_path / "whole", 250), fitted(tmp_path / "stopped", 130, 201, 250)
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    torch.testing.assert_close(whole["weight"], torch.ones(1, 3), atol=0.1, rtol=0)


def test_a_cosine_that_changes_is_that_of_a_run_that_went_on_with_other_steps(tmp_path):
    """As the flow was made: begun with the cosine of one number of steps, gone on with that of another."""

    def fitted(folder, stop, steps, cosine=None):
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)

        def loss(step):
            if step == stop:
                raise KeyboardInterrupt
            x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
            return (model(x).squeeze(-1) - x.sum(-1)).square().mean()

        with contextlib.suppress(KeyboardInterrupt):
            fit("line", model, loss, steps, 5e-2, folder, cosine_steps=cosine)
        return model.state_dict()

    fitted(tmp_path / "two", 100, 400)
    two = fitted(tmp_path / "two", None, 250)
    one = fitted(tmp_path / "one", None, 250, lambda step: 400 if step <= 100 else 250)
    other = fitted(tmp_path / "other", None, 250)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["weight"], other["weight"])


def test_shipped_weights_are_small_and_those_of_the_card():
    """Sizes as promised, every file's hash in the card, and every gate's figure within its gate."""
    weights = sorted(microworld.WEIGHTS.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in weights) <= 32e6
    unet = UNet2DConditionModel.from_pretrained(microworld.GENERATOR / "unet")
    assert unet.num_parameters() <= 8e6
    text = (microworld.WEIGHTS / "README.md").read_text()
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() in text for path in weights)
    figures = json.loads((microworld.WEIGHTS / "figures.json").read_text())
    assert all(low <= figures[name] <= high + 1e-6 for name, (low, high) in GATES.items())


def test_the_judge_judges_as_the_card_says():
    """The judge on fresh renders, against the figure recorded when it was shipped."""
    figures = json.loads((microworld.WEIGHTS / "figures.json").read_text())
    images, scenes = corpus.batch(600, 123, BALANCED)
    seen = load_judge().verdicts(images).category
    accuracy = (seen == torch.from_numpy(scenes.categories)).float().mean().item()
    assert abs(accuracy - figures["judge_category_accuracy"]) < 0.04


def test_no_shipped_file_names_a_place_on_the_machine_that_made_it():
    """diffusers and transformers write where they read a part from."""
    texts = {
        path: path.read_text() for path in microworld.WEIGHTS.rglob("*") if path.suffix in (".json", ".md", ".jinja")
    }
    assert len(texts) > 10
    assert not [path for path, text in texts.items() if "_name_or_path" in text]

"""Biases of known strength, planted in the micro world: each measure rises with its own, and stays low without."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from audited import ATTRIBUTES, photographs, write_image_folder

from lbgen.audit.attributes import load_attributes
from lbgen.audit.cache import RowCache
from lbgen.audit.config import AuditConfig
from lbgen.audit.measures import Measured, measure
from lbgen.audit.observe import Observer, canvas_side, observe
from lbgen.audit.records import open_source
from lbgen.microworld.scenes import Scenes
from lbgen.models.semantics import load_semantics

COUNT = 480
PLANTED = {
    "none": {},
    "scene 0.5": {"scene": 0.5},
    "scene 0.8": {"scene": 0.8},
    "scene 1": {"scene": 1.0},
    "colour": {"colour": 1.0},
    "position": {"position": 1.0},
    "texture": {"texture": 1.0},
}


def clear_of_the_border(seed: int, **links: float) -> Scenes:
    """Photographs whose object leaves the border ring free, as many of each category; else the ring shows the object."""
    drawn = photographs(5 * COUNT, seed, **links)
    ring = drawn.masks.copy()
    ring[:, 4:-4, 4:-4] = False
    clear = np.flatnonzero(~ring.any(axis=(1, 2)))
    rows = np.concatenate([clear[drawn.categories[clear] == c][: COUNT // 12] for c in range(12)])
    assert len(rows) == COUNT
    factors = {name: values[rows] for name, values in drawn.factors.items()}
    return replace(drawn, images=drawn.images[rows], masks=drawn.masks[rows], categories=drawn.categories[rows],
                   factors=factors)  # fmt: skip


@pytest.fixture(scope="module")
def audited(tmp_path_factory) -> dict[str, Measured]:
    """Every planted set, with given masks, measured."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "attributes.yaml").write_text(ATTRIBUTES)
    attributes = load_attributes(folder / "attributes.yaml")
    space = load_semantics("microworld")
    observer = Observer(space, canvas_side(space))
    cache = RowCache(folder, "microworld", observer.fields())
    config = AuditConfig(permutations=199)
    result = {}
    for seed, (name, links) in enumerate(PLANTED.items()):
        source = open_source(write_image_folder(folder / name, clear_of_the_border(seed, **links), masks=True))
        observed = observe(source, name, observer, cache, batch_size=64)
        result[name] = measure(observed, space, attributes, config, 30, lambda step: None)
    return result


def probe(audited: dict[str, Measured], planted: str, name: str):
    return audited[planted].figures[f"probes.{name}"]


def scene_told(strength: float) -> float:
    """Share of labels that the scene alone tells at best: two categories share a home."""
    return (strength + (1 - strength) / 6) / 2


def scene_link(m: Measured):
    return next(a for a in m.attributes if a.reading.name == "scene").association


@pytest.mark.parametrize("strength", [0.5, 0.8, 1.0])
def test_intervals_of_the_scenes_link_cover_the_truth(audited, strength):
    """Against Cramér's V of the world's own table, which is the planted strength."""
    found = scene_link(audited[f"scene {strength:g}"])
    assert found.cramers_v.low <= strength <= found.cramers_v.high + 0.02
    assert found.p_value == 1 / 200


@pytest.mark.parametrize("name", ["background", "border"])
def test_what_surroundings_tell_is_what_the_scene_tells(audited, name):
    """Against the best share that the scene alone allows, within 6 points: the probes learn from 32 images a category."""
    for strength in (0.5, 0.8, 1.0):
        found = probe(audited, f"scene {strength:g}", name)
        assert found.value == pytest.approx(scene_told(strength), abs=0.06)
        assert found.low - 0.02 <= scene_told(strength) <= found.high + 0.02


def test_without_a_link_everything_is_at_its_floor(audited):
    """Chance is 1 / 12. The thumbnail, the colours and shuffled patches still show the object, so they have no floor."""
    for planted in ("none", "colour", "texture"):
        m = audited[planted]
        assert all(a.q_value > 0.05 for a in m.attributes), planted
        assert all(a.association.cramers_v.low < 0.02 for a in m.attributes)
        border = probe(audited, planted, "border")
        assert border.low <= 1 / 12 <= border.high
        assert probe(audited, planted, "background").low < 1 / 12 + 0.03


def test_each_measure_rises_with_its_own_bias(audited):
    """By more than both intervals allow, against the set with no link."""
    for planted, name in (
        ("scene 0.5", "background"),
        ("scene 0.5", "border"),
        ("scene 0.5", "thumbnail"),
        ("scene 0.5", "color_histogram"),
        ("colour", "color_histogram"),
        ("colour", "thumbnail"),
    ):
        assert probe(audited, planted, name).low > probe(audited, "none", name).high, (planted, name)
    assert probe(audited, "texture", "patch_shuffle").low > probe(audited, "none", "patch_shuffle").value


def test_a_planted_position_is_measured(audited):
    """From the masks' middles; V in a 3 x 3 grid is below the planted 1, which is of quadrants."""
    found = {a.reading.name: a for a in audited["position"].attributes}["measured position"]
    assert found.association.cramers_v.low > 0.4 and found.q_value < 0.05


def test_scene_measures_rise_with_strength(audited):
    for read in (lambda m: scene_link(m).normalized_mutual_information, lambda m: m.figures["probes.border"]):
        values = [read(audited[name]).value for name in ("none", "scene 0.5", "scene 0.8", "scene 1")]
        assert values == sorted(values)


def test_diversity_falls_when_scenes_are_fixed(audited):
    assert audited["scene 1"].figures["diversity"].high < audited["none"].figures["diversity"].low


def test_strongest_pairs_are_the_planted_ones(audited):
    """Every category's home scene is found significant, and nothing else of the scenes is."""
    scene = audited["scene 0.8"].attributes[0]
    assert (scene.pair_q_values < 0.05).sum() == 12
    assert all(scene.pair_q_values[row, label % 6] < 0.05 for row, label in enumerate(_numbers(audited["scene 0.8"])))


def _numbers(m: Measured) -> list[int]:
    from lbgen.microworld.world import CATEGORIES

    return [CATEGORIES.index(label.id) for label in m.observed.labels]


def test_image_features_do_not_depend_on_the_batch(audited, tmp_path):
    """Against the space itself, one image at a time."""
    observed, space = audited["none"].observed, load_semantics("microworld")
    from lbgen.audit import views

    content = next(record.content for record in open_source_of(observed))
    canvas = views.decode(content, None, 64).canvas[None].float() / 255
    with torch.no_grad():
        alone = space.embed_images(canvas)[0].numpy()
    assert observed.column("image", np.array([0]))[0] == pytest.approx(alone, abs=2e-3)


def open_source_of(observed):
    from pathlib import Path

    return open_source(Path(observed.folder)).records()

"""Biases of known strength, planted in the micro world: each measure rises with its own, and stays low without."""

import numpy as np
import pytest
from audited import ATTRIBUTES, photographs, write_image_folder

from lbgen.attributes import load_attributes
from lbgen.audit.cache import RowCache
from lbgen.audit.config import AuditConfig
from lbgen.audit.measures import Measured, measure
from lbgen.audit.observe import Observer, canvas_side, observe
from lbgen.audit.records import open_source
from lbgen.microworld.scenes import Scenes
from lbgen.models.semantics import load_semantics

COUNT = 240
PLANTED = {
    "none": {},
    "scene 0.5": {"scene": 0.5},
    "scene 1": {"scene": 1.0},
    "colour": {"colour": 1.0},
    "position": {"position": 1.0},
    "texture": {"texture": 1.0},
}


def clear_of_the_border(count: int, seed: int, **links: float) -> Scenes:
    """Photographs, as many of each category, whose object leaves the border free, which would show parts of it."""
    drawn = photographs(6 * count, seed, **links)
    ring = drawn.masks.copy()
    ring[:, 4:-4, 4:-4] = False
    clear = np.flatnonzero(~ring.any(axis=(1, 2)))
    rows = np.concatenate([clear[drawn.categories[clear] == c][: count // 12] for c in range(12)])
    assert len(rows) == count
    return Scenes(drawn.images[rows], drawn.masks[rows], drawn.categories[rows], {})


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
        drawn = (clear_of_the_border if set(links) <= {"scene"} else photographs)(COUNT, seed, **links)
        source = open_source(write_image_folder(folder / name, drawn, masks=True))
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


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_intervals_of_the_scenes_link_cover_the_truth(audited, strength):
    """Against Cramér's V of the world's own table, which is the planted strength."""
    found = scene_link(audited[f"scene {strength:g}"])
    assert found.cramers_v.low <= strength <= found.cramers_v.high + 0.02
    assert found.p_value == 1 / 200


@pytest.mark.parametrize("name", ["background", "border"])
def test_what_surroundings_tell_is_what_the_scene_tells(audited, name):
    """Against the best share that the scene alone allows, within 8 points: the square tells a little of the size."""
    for strength in (0.5, 1.0):
        found = probe(audited, f"scene {strength:g}", name)
        assert found.value == pytest.approx(scene_told(strength), abs=0.08)
        assert found.low - 0.03 <= scene_told(strength) <= found.high + 0.02


def test_without_a_link_everything_is_at_its_floor(audited):
    """Chance is 1 / 12. The other probes' pictures still show the object, so they have no such floor."""
    for planted in ("none", "colour", "texture"):
        m = audited[planted]
        assert all(a.q_value > 0.05 for a in m.attributes if a.reading.name == "scene"), planted
        assert scene_link(m).cramers_v.low < 0.02
    for name in ("border", "background"):
        found = probe(audited, "none", name)
        assert found.low <= 1 / 12 + 0.02 and found.high >= 1 / 12, name


def test_each_measure_rises_with_its_own_bias(audited):
    """By more than both intervals allow, against the set with no link."""
    for planted, name in (
        ("scene 0.5", "background"),
        ("scene 0.5", "border"),
        ("scene 0.5", "thumbnail_outside"),
        ("scene 0.5", "color_histogram_outside"),
        ("scene 0.5", "patch_shuffle_outside"),
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
        values = [read(audited[name]).value for name in ("none", "scene 0.5", "scene 1")]
        assert values == sorted(values)


def test_diversity_falls_when_scenes_are_fixed(audited):
    assert audited["scene 1"].figures["diversity"].high < audited["none"].figures["diversity"].low


def test_strongest_pairs_are_the_planted_ones(audited):
    """Every category's home scene is found significant, and nothing else of the scenes is."""
    scene = audited["scene 1"].attributes[0]
    assert (scene.pair_q_values < 0.05).sum() == 12
    assert all(scene.pair_q_values[row, label % 6] < 0.05 for row, label in enumerate(_numbers(audited["scene 1"])))


def _numbers(m: Measured) -> list[int]:
    from lbgen.microworld.world import CATEGORIES

    return [CATEGORIES.index(label.id) for label in m.observed.labels]

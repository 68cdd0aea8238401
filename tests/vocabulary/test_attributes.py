"""Attribute files: the ones that come with lbgen, and the mistakes that a file can have."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lbgen.errors import UserError
from lbgen.microworld import GENERATOR, SEMANTICS
from lbgen.microworld.world import CATEGORIES, SCENES
from lbgen.vocabulary.attributes import load_attributes


def test_photographs_have_a_scene():
    attributes = {attribute.name: attribute for attribute in load_attributes(None)}
    assert "in the snow" in attributes["scene"].values
    assert attributes["season"].texts("fox")[0] == "a photo taken in spring"


def test_micro_world_is_described_in_words_that_its_models_know():
    """Against its tokenizers, and the scenes that are there."""
    (scene,) = load_attributes(Path("microworld"))
    assert (scene.name, scene.values) == ("scene", tuple(f"on {place}" for place in SCENES))
    prompts = [f"{name} {value}" for name in CATEGORIES for value in scene.values]
    for folder, texts in ((GENERATOR / "tokenizer", prompts), (SEMANTICS, scene.texts("fish"))):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.unk_token_id is not None
        for text in texts:
            assert tokenizer.unk_token_id not in tokenizer(text).input_ids


def test_name_takes_its_place_in_the_template(tmp_path):
    (tmp_path / "a.yaml").write_text("size: {template: 'a {value} {name}', values: [small, big]}")
    assert load_attributes(tmp_path / "a.yaml")[0].texts("red fox") == ["a small red fox", "a big red fox"]


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "no attributes in it"),
        ("scene: [grass, snow]", "a.yaml, scene: give it a `template` and `values`"),
        ("scene: {template: on grass, values: [grass, snow]}", "has no {value}"),
        ("scene: {template: '{value}', values: [grass]}", "two or more texts"),
        ("scene: {template: '{value}', values: [1, 2]}", "quote numbers"),
        ("scene: {template: '{value}', values: [grass, grass]}", "a value is listed twice"),
        ("measured position: {template: '{value}', values: [a, b]}", "choose another"),
    ],
)
def test_mistakes_are_refused(tmp_path, content, message):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        load_attributes(tmp_path / "a.yaml")


def test_missing_file_is_refused():
    with pytest.raises(UserError, match="/dev/null/attributes.yaml: Not a directory"):
        load_attributes(Path("/dev/null/attributes.yaml"))

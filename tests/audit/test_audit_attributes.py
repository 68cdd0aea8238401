"""The attribute list: what may stand in it, and that lbgen's own fits every language space it ships."""

import numpy as np
import pytest

from lbgen.audit.attributes import measured_position
from lbgen.errors import UserError
from lbgen.models.semantics import load_semantics
from lbgen.vocabulary.attributes import load_attributes


def test_the_built_in_list_fits_the_shortest_language_model():
    """The micro world's reads 12 tokens."""
    space = load_semantics("microworld")
    for attribute in load_attributes(None):
        assert all(space.count_tokens(text) <= space.token_limit for text in attribute.texts("")), attribute.name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no attributes in it"),
        ("scene: 3", "give it a `template` and `values`"),
        ("scene: {template: a, values: [b, c], extra: d}", "and nothing else"),
        ("scene: {template: on, values: [a, b]}", "has no {value}"),
        ('scene: {template: "{value}", values: [a]}', "two or more texts"),
        ('scene: {template: "{value}", values: [a, 3]}', "quote numbers"),
        ('scene: {template: "{value}", values: [a, a]}', "a value is listed twice"),
        ('measured position: {template: "{value}", values: [a, b]}', "this name belongs to a measure without texts"),
        ("- scene", "expected lines of the form"),
    ],
)
def test_refusals_name_the_file_and_the_attribute(tmp_path, content, message):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(UserError, match="a.yaml") as refused:
        load_attributes(tmp_path / "a.yaml")
    assert message in str(refused.value)


def test_positions_by_hand():
    place = np.array([[0, 0.4, 0.1, 0.3], [0.4, 0.6, 0, 1], [0.8, 1, 0.4, 0.6], [0.2, 0.4, 0.7, 0.9]])
    assert measured_position(place).tolist() == [0, 4, 7, 2]

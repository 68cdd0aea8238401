"""A dataset's own files, edited by hand into something else: one line that names file and field, no traceback."""

import json
from dataclasses import replace

import pytest
import yaml

from lbgen.errors import UserError
from lbgen.generation.run import generate
from lbgen.generation.verify import verify


@pytest.fixture
def made(whole, tmp_path):
    """The files that a run reads of a dataset."""
    for name in ("plan.json", "dataset.yaml"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    return tmp_path


def refusal(config, folder) -> str:
    """What generate says; verify says the same."""
    said = []
    for call in (lambda: generate(replace(config, output=folder)), lambda: verify(folder)):
        with pytest.raises(UserError) as caught:
            call()
        said.append(str(caught.value))
    assert said[0] == said[1] and "\n" not in said[0]
    return said[0]


TARGET = {"split": "train", "images_per_category": 4, "categories": [["z1", "cat"], ["a2", "dog"]]}


@pytest.mark.parametrize(
    "content, message",
    [
        ({"split": "train"}, "plan.json: Expected array, got object; restore the file"),
        ([], "plan.json: no target in it; restore the file"),
        ([3], "plan.json, [0]: Expected object, got int"),
        ([TARGET, TARGET | {"images_per_category": "4"}], "plan.json, [1].images_per_category: Expected int, got str"),
        ([TARGET | {"categories": [["z1", 3]]}], "plan.json, [0].categories[0][1]: Expected str, got int"),
        ([TARGET | {"categories": ["z1"]}], "plan.json, [0].categories[0]: Expected array, got str"),
        ([TARGET | {"split": None}], "plan.json, [0].split: Expected str, got null"),
    ],
    ids=str,
)
def test_plan_of_another_shape(config, made, content, message):
    (made / "plan.json").write_text(json.dumps(content))
    assert message in refusal(config, made)


@pytest.mark.parametrize(
    "part, field, value, message",
    [
        ("config", None, ["x"], "dataset.yaml, config: not lines of `field: value`; restore the file or choose"),
        ("config", "steps", "many", 'dataset.yaml, config, steps: "many" is not a whole number; restore the file'),
        ("config", "batch_size", {"a": 1}, "dataset.yaml, config, batch_size: "),
        ("config", "generator", 3, "dataset.yaml, config, generator: 3 is not text"),
        ("made_with", None, None, "dataset.yaml, made_with: Expected object, got null"),
        ("made_with", "versions", 3, "dataset.yaml, made_with, versions: Expected array, got int"),
        ("made_with", "generator_sha256", [1], "dataset.yaml, made_with, generator_sha256: "),
    ],
)
def test_record_of_another_shape(config, made, part, field, value, message):
    content = yaml.safe_load((made / "dataset.yaml").read_text())
    if field:
        content[part][field] = value
    else:
        content[part] = value
    (made / "dataset.yaml").write_text(yaml.safe_dump(content))
    assert message in refusal(config, made)


@pytest.mark.parametrize(
    "part, field", [("config", "batch_size"), ("config", "generator"), ("made_with", "versions"), ("made_with", None)]
)
def test_record_that_lacks_a_field(config, made, part, field):
    content = yaml.safe_load((made / "dataset.yaml").read_text())
    del (content[part] if field else content)[field or part]
    (made / "dataset.yaml").write_text(yaml.safe_dump(content))
    assert (
        f"{part}, {field}: it is missing; restore" if field else "dataset.yaml is missing or incomplete"
    ) in refusal(config, made)

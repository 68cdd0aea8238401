"""The generators with a short name; their licences in the plan, and in the card as Markdown shows it."""

import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from lbgen.generation.config import GenerateConfig
from lbgen.generation.estimate import plan
from lbgen.generation.run import generate
from lbgen.models.checkpoints.known import KNOWN
from lbgen.models.families import FAMILIES
from lbgen.models.registry import GENERATORS, licence


def test_every_short_name_has_a_licence_that_says_whether_its_images_may_train() -> None:
    for name in GENERATORS:
        assert licence(name) is not None, name
        assert licence(name).training_data.startswith(("yes", "with limits: "))
    assert licence(GENERATORS["sd15"]) == licence("sd15") and licence("somebody/model") is None


def test_the_page_about_models_has_every_licence() -> None:
    page = (Path(__file__).parents[3] / "docs/models.md").read_text()
    rows = re.findall(r"^\| (`.*`) \| (.*) \| ((?:yes|with limits).*) \|$", page, re.MULTILINE)
    told = {name: (licence, use) for names, licence, use in rows for name in re.findall("`(.*?)`", names)}
    assert told == {name: tuple(known.licence) for name, known in KNOWN.items()}


def test_every_short_name_is_of_a_family_that_comes_with_lbgen() -> None:
    assert {known.pipeline for known in KNOWN.values()} == FAMILIES.keys()


@pytest.mark.parametrize("known", [True, False])
def test_plan_and_card_say_it(known: bool, config: GenerateConfig, tmp_path, capsys: pytest.CaptureFixture) -> None:
    generator = "microworld" if known else config.generator
    vocabulary = "microworld" if known else config.vocabulary
    asked = replace(
        config, generator=generator, vocabulary=vocabulary, output=str(tmp_path / "made"), images_per_category=1
    )
    plan(asked)
    expected = "Apache-2.0; images as training data: yes" if known else "not known to lbgen; read the model card"
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("licence")]
    assert expected in line
    generate(asked)
    card = " ".join(unescape((tmp_path / "made/README.md").read_text()).split())
    told = "Apache-2.0. May they be training data? yes." if known else "lbgen does not know them; read them"
    assert told in card

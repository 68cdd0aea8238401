"""What `lbgen plan` says, for people."""

import re
from dataclasses import replace

import pytest

from lbgen.errors import UserError
from lbgen.generation.estimate import SIZES, TIMES, in_units, plan
from lbgen.generation.run import generate


@pytest.mark.parametrize(
    "value, units, shown",
    [
        (0.25, TIMES, "0.25 seconds"),
        (1, TIMES, "1 second"),
        (75, TIMES, "1.25 minutes"),
        (3600, TIMES, "1 hour"),
        (3600 * 657.4, TIMES, "657 hours"),
        (3600 * 12345, TIMES, "12,345 hours"),
        (194_000, SIZES, "194 kB"),
        (551e9, SIZES, "551 GB"),
        (6.04e12, SIZES, "6.04 TB"),
        (12, SIZES, "0.012 kB"),
    ],
)
def test_figures_are_in_units_that_people_read(value, units, shown):
    assert in_units(value, units) == shown


def test_plan_counts_and_makes_nothing(config, tmp_path, capsys):
    """12 images in shards of 5, 5 and 2, of which two are made."""
    made = replace(config, output=tmp_path / "made")
    estimate = plan(made)
    assert not (tmp_path / "made").exists()
    lines = dict(re.split("  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["first"] == 'category "cat", id z1'
    assert lines["images"] == "12 of 3 categories, split train"
    assert lines["to make"] == "12 images in 3 shards"
    seconds = 12 / estimate.images_per_second
    assert (lines["prompt"], lines["steps"]) == ('"red fox", of the first image', "2 ddim steps, guidance 2")
    assert lines["time"] == f"{in_units(seconds, TIMES)} of one such device"
    generate(made)
    capsys.readouterr()
    (tmp_path / "made/index/train-00002.parquet").unlink()
    plan(made)
    shown = capsys.readouterr().out
    assert "12 of 3 categories, split train; 10 of them are made already or belong to other parts\n" in shown
    assert re.search("^to make +2 images in 1 shard$", shown, re.MULTILINE)


def test_the_licence_is_shown_before_weights_are_read(config, capsys, tmp_path):
    """Also where there are none."""
    with pytest.raises(UserError, match="none cannot be loaded: there is no such folder"):
        plan(replace(config, generator=str(tmp_path / "none"), output=tmp_path / "data"))
    assert "\nlicence  not known to lbgen; read the model card" in capsys.readouterr().out


def test_the_licence_of_a_known_generator_is_shown(config, capsys, monkeypatch, tmp_path):
    """A hub that cannot be reached is asked for the weights after it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="stable-diffusion-xl-base-1.0 cannot be loaded"):
        plan(replace(config, generator="sdxl", output=tmp_path / "data"))
    assert "\nlicence  CreativeML OpenRAIL++-M; images as training data: yes" in capsys.readouterr().out

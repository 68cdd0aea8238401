"""What a run says when it begins, goes on and ends, and what it says beforehand that it will cost."""

import re
import shlex
from dataclasses import replace

import pytest
import yaml
from alignment_runs import TERM

from lbgen.alignment import loop, monitor, run, state
from lbgen.alignment.checkpoint import AlignmentProgress
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.reports.estimate import evaluations, plan_align, sampled_images
from lbgen.cli import main
from lbgen.runs.console import Verbosity, showing
from lbgen.vocabulary.vocabulary import load_vocabulary


def rows(shown: str) -> dict[str, str]:
    return dict(re.split("  +", line, maxsplit=1) for line in shown.splitlines() if "  " in line)


def test_a_run_opens_with_what_it_does_and_ends_with_the_next_command(fresh, capsys):
    config = fresh(discriminator_warmup_steps=1)
    result = run.align(config)
    shown = capsys.readouterr().out
    opening = rows(shown)
    assert opening["generator"] == f"{config.generator}, with a LoRA of rank 2"
    assert opening["language space"] == config.semantics and opening["scorer"] == "antonyms"
    assert opening["categories"] == f'5 of {config.vocabulary}, the first is "cat"'
    assert opening["update"] == "2 images" and opening["updates"] == "2, after 1 of the discriminator alone"
    assert opening["output"] == str(config.folder) and opening["device"].endswith(", fp32")
    assert shown.splitlines()[-1] == f"2 updates; the adapter is in {config.folder}/adapter"
    assert "going on" not in shown

    # The command is one that lbgen takes, and it generates with this adapter.
    program, *argv = shlex.split(result.next_command)
    assert program == "lbgen"
    main([*argv, "--print-config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    named = {name: printed[name] for name in ("adapter", "generator", "vocabulary", "steps")}
    assert named == {
        "adapter": f"{config.folder}/adapter", "generator": config.generator,
        "vocabulary": config.vocabulary, "steps": config.steps,
    }  # fmt: skip

    # It goes on from where it stands; a finished run says so.
    run.align(replace(config, max_steps=3))
    assert "\ngoing on from step 2 of 3\n" in capsys.readouterr().out
    run.align(replace(config, max_steps=3))
    finished = f"{config.folder} is finished: 3 steps; the adapter is in {config.folder}/adapter\n"
    assert capsys.readouterr().out == finished


def test_a_run_that_was_stopped_in_its_warm_up_says_where_it_goes_on(fresh, capsys):
    config = fresh(discriminator_warmup_steps=9)
    vocabulary = load_vocabulary(config.vocabulary)
    run.say_opening(config, vocabulary, AlignmentProgress(0, 4, 2, ""), processes=2, device="a device")
    shown = capsys.readouterr().out
    assert shown.endswith("going on from warm-up update 4 of 9\n") and "2 images (2 processes of 2)" in shown


@pytest.mark.parametrize(
    ("fields", "scorer"),
    [
        ({"quality": "none", "quality_weight": 0.0}, "none"),
        ({"quality": "none"}, "none"),
        ({"quality_weight": 0.0}, "antonyms, for the log only (weight 0)"),
    ],
)
def test_the_scorer_of_a_run_is_named_as_it_is_used(fresh, capsys, fields, scorer):
    config = fresh(**fields)
    run.say_opening(
        config, load_vocabulary(config.vocabulary), AlignmentProgress(0, 0, 2, ""), processes=1, device="a device"
    )
    assert rows(capsys.readouterr().out)["scorer"] == scorer


def test_quiet_prints_nothing_and_verbose_every_setting_and_step(fresh, capsys):
    config = fresh()
    with showing(Verbosity.QUIET):
        run.align(config)
    assert capsys.readouterr() == ("", "")
    with showing(Verbosity.VERBOSE):
        run.align(replace(config, max_steps=4))
    shown = capsys.readouterr()
    settings = yaml.safe_load((config.folder / "config.yaml").read_text())
    assert all(f"\n{name}:" in shown.out for name in settings) and "versions: lbgen " in shown.out
    assert "align: 3 of 4 updates" in shown.err and "align: 4 of 4 updates" in shown.err


@pytest.mark.parametrize("every", [0, 1, 3, 4, 25])
@pytest.mark.parametrize("steps", [1, 3, 12, 26])
@pytest.mark.parametrize("done", [0, 1, 3, 11])
def test_evaluations_are_counted(every, steps, done):
    """By the rule of the training loop, update by update."""
    counted = int(done == 0)
    counted += sum(step == steps or (every > 0 and step % every == 0) for step in range(done + 1, steps + 1))
    if done < steps:
        assert evaluations(AlignConfig(max_steps=steps, evaluate_every=every), done) == counted


@pytest.fixture
def sampled(monkeypatch) -> list[bool]:
    """For every image that is sampled, whether it has a gradient."""
    counted: list[bool] = []
    for module in (loop, monitor, state):
        sample = module.sample_images

        def counting(*arguments, sample=sample, **options):
            images = sample(*arguments, **options)
            counted.extend([images.requires_grad] * len(images))
            return images

        monkeypatch.setattr(module, "sample_images", counting)
    return counted


@pytest.mark.parametrize("fields", [TERM, {"discriminator_warmup_batch": 3}], ids=["term", "larger warm-up"])
def test_the_images_of_a_plan_are_those_that_a_run_samples(fresh, sampled, fields):
    """Counted while a run makes them: warm-up, bank and evaluations, without gradient."""
    config = fresh(discriminator_warmup_steps=2, **fields)
    run.align(config)
    vocabulary = load_vocabulary(config.vocabulary)
    planned = sampled_images(config, vocabulary, AlignmentProgress(0, 0, config.batch_size, ""))
    checked = config.batch_size  # of the gradients at the start
    assert sampled.count(True) == config.max_steps * config.batch_size + checked
    assert sampled.count(False) == planned


def test_a_plan_measures_updates_of_the_adapter_and_not_of_the_warm_up(fresh, sampled):
    """Two updates with gradient and a batch without, each of --batch-size images."""
    config = fresh(discriminator_warmup_steps=5, discriminator_warmup_batch=3)
    plan_align(config)
    assert sampled == [True] * 2 * config.batch_size + [False] * config.batch_size


def test_a_plan_shows_what_would_be_made_and_writes_nothing(fresh, capsys, tmp_path):
    config = fresh(max_steps=40, evaluate_every=10, prompt_template="a {name}", **TERM)
    estimate = plan_align(config)
    assert not config.folder.exists() and list(tmp_path.iterdir()) == []
    shown = rows(capsys.readouterr().out)
    assert shown["prompt"] == '"a cat", of the first of 5 categories, id cat'
    assert shown["steps"] == "3 ddpm steps, 2 of them with gradient, guidance 2"
    assert shown["updates"] == "40" and estimate.updates == 40
    seconds = 40 * estimate.seconds_per_update + estimate.sampled_images * estimate.seconds_per_image
    assert estimate.hours == pytest.approx(seconds / 3600)
    assert 50e6 < estimate.bytes_of_memory < 100e9


def test_the_plan_of_a_run_that_was_begun_counts_the_rest(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    estimate = plan_align(finished)
    assert "to make  nothing" in capsys.readouterr().out and estimate.hours is None and estimate.updates == 0
    assert plan_align(replace(finished, max_steps=5)).updates == 3
    assert "5; 2 of them are made" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")} == before


def test_the_flag_plans_and_makes_nothing(fresh, capsys):
    config = fresh()
    argv = ["--generator", config.generator, "--semantics", config.semantics, "--vocabulary", config.vocabulary]
    small = [
        "--rank",
        "2",
        "--steps",
        "3",
        "--differentiated-steps",
        "2",
        "--batch-size",
        "1",
        "--logger",
        "none",
        "--plan",
    ]
    main(["align", *argv, *small, "--output", str(config.folder)])
    assert "of one such device" in capsys.readouterr().out and not config.folder.exists()

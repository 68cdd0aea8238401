"""Alignment runs that cannot begin or go on end in one line that says why."""

import copy
import dataclasses
import importlib.util
import math
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from alignment_runs import state_of
from safetensors.torch import load_file, save_file

from lbgen.alignment import loop, run, training
from lbgen.alignment.config import AlignConfig
from lbgen.configuration.saved import save
from lbgen.errors import UserError


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_an_output_that_is_or_lies_under_a_file_is_refused_before_models_are_loaded(fresh, tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"--output .*/{place}: .*/file is a file; choose"):
        run.align(fresh(output=tmp_path / place, generator=str(tmp_path / "none")))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output_is_refused_before_models_are_loaded(fresh, tmp_path):
    (tmp_path / "sealed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="no permission to write in .*/sealed; choose another"):
        run.align(fresh(output=tmp_path / "sealed" / "run", generator=str(tmp_path / "none")))


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that the system lets nobody write")
def test_an_output_that_cannot_be_made_is_one_line(fresh):
    with pytest.raises(UserError, match="^--output /proc/x: .*; choose a folder that can be written"):
        run.align(fresh(output=Path("/proc/x")))


@pytest.mark.parametrize("limit", [10_000, 20_000, 100_000])
def test_a_disk_that_takes_no_more_is_one_line(fresh, limit):
    """The system refuses to write beyond the limit: in the base images, the adapter, the optimiser's state."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError, match="File too large.*nothing saved is lost, make room and start again"):
            run.align(fresh(max_steps=1, rank=8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("flag", "file"), [("generator", "unet/diffusion_pytorch_model"), ("semantics", "model")])
def test_a_run_does_not_go_on_with_other_weights(fresh, tmp_path, flag, file):
    """One number of a safetensors file is changed between two runs; libraries may change."""
    config = fresh(max_steps=1)
    folder = shutil.copytree(getattr(config, flag), tmp_path / flag)
    config = dataclasses.replace(config, **{flag: str(folder)})
    run.align(config)
    record = config.folder / "provenance.json"
    record.write_text(record.read_text().replace('"torch ', '"torch 0.'))
    recorded = record.read_text()
    weights = folder / f"{file}.safetensors"
    original, tensors = weights.read_bytes(), load_file(weights)
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    longer = dataclasses.replace(config, max_steps=2)
    with pytest.raises(
        UserError, match=f"made with {flag}_sha256 .*; restore the {flag} that it was made with, or choose another"
    ):
        run.align(longer)
    weights.write_bytes(original)
    assert run.align(longer).steps == 2 and record.read_text() == recorded


def test_a_run_does_not_go_on_with_another_configuration_of_its_models(fresh, tmp_path):
    """An edit of what the network predicts is noticed; files that are not loaded, and links to parts, do not count."""
    config = fresh(max_steps=1)
    folder = Path(shutil.copytree(config.generator, tmp_path / "generator"))
    config = dataclasses.replace(config, generator=str(folder))
    run.align(config)
    longer = dataclasses.replace(config, max_steps=2)
    scheduler = folder / "scheduler/scheduler_config.json"
    original = scheduler.read_text()
    scheduler.write_text(original.replace('"epsilon"', '"v_prediction"'))
    assert scheduler.read_text() != original
    with pytest.raises(UserError, match="made with generator_sha256 v2:.*; restore the generator that it was made"):
        run.align(longer)
    scheduler.write_text(original)
    (folder / "unet").rename(tmp_path / "unet")
    (folder / "unet").symlink_to(tmp_path / "unet")
    (folder / "vae/diffusion_pytorch_model.fp16.safetensors").write_text("not loaded")
    assert run.align(longer).steps == 2


@pytest.mark.parametrize("variable", ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "ACCELERATE_DYNAMO_BACKEND"])
def test_what_accelerate_does_not_start_with_is_one_line(fresh, monkeypatch, variable):
    monkeypatch.setenv(variable, "nonsense")
    with pytest.raises(UserError, match="^accelerate does not start: .*(nonsense|NONSENSE).*; correct or unset"):
        run.align(fresh())


@pytest.mark.parametrize("field", ["text_template", "discriminator_template"])
def test_a_text_too_long_for_the_semantics_is_named_by_file_and_line(fresh, field):
    """The miniature reads 16 tokens, most letters being one."""
    with pytest.raises(UserError, match="names.txt, line 1: .* tokens long, the text encoder reads 16; shorten"):
        state_of(fresh(**{field: "qwertyuiopqwertyuiop {name}"}))


def test_in_fp16_a_run_that_no_loss_scale_saves_is_stopped(fresh, monkeypatch):
    """With torch's own GradScaler and infinite features: 2 and 1 are tried before the scale falls below 1."""
    sample_batch = loop.sample_batch

    def overflowed(state, batch_index, **options):
        batch = sample_batch(state, batch_index, **options)
        return dataclasses.replace(batch, features=batch.features * float("inf"))

    monkeypatch.setattr(loop, "sample_batch", overflowed)
    state = state_of(fresh(batch_size=1, discriminator_warmup_steps=7))
    state.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = [parameter.clone() for parameter in state.parameters]
    for batch_index, scale in ((7, 2.0), (8, 1.0)):
        loop.training_step(state, batch_index)
        assert state.scaler.get_scale() == scale
    with pytest.raises(UserError, match="step 3: the adapter's gradient is nan; .* --precision bf16, or a lower"):
        loop.training_step(state, 9)
    assert all(torch.equal(a, b) for a, b in zip(before, state.parameters, strict=True))


def test_in_fp16_an_update_whose_images_overflow_is_skipped(fresh, tmp_path):
    """With torch's own GradScaler and a decoder that overflows once, against a run without that update; also resumed.

    Without the scaler of fp16 the run stops at the first such image.
    """
    states = [state_of(fresh(batch_size=1, output=tmp_path / name)) for name in ("with", "without", "resumed")]
    overflows = []
    for state in states:
        state.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        decoder = state.generator.family.vae.decoder
        decoder.register_forward_hook(lambda module, read, images: images * float("inf") if overflows else None)

    for batch_index in (0, 1):
        loop.training_step(states[0], batch_index)
    overflows.append(True)
    values = loop.training_step(states[0], 2)
    assert math.isnan(values["loss"]) and states[0].scaler.get_scale() == 4.0  # grown to 8 after two, then halved
    with pytest.raises(UserError, match="image 0 of .* is not finite"):
        loop.measure_gradients(states[0])
    overflows.clear()
    states[2]._load(copy.deepcopy(states[0]._tensors()) | {"parameters": states[0].parameters})
    for state, batch_indices in zip(states, ((3, 4), (0, 1, 3, 4), (3, 4)), strict=True):
        for batch_index in batch_indices:
            loop.training_step(state, batch_index)
    for other in states[1:]:
        pairs = zip(states[0].parameters, other.parameters, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        weights = (state.discriminator.state_dict().values() for state in (states[0], other))
        assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert states[2].scaler.state_dict() == states[0].scaler.state_dict()


def test_a_logger_that_is_not_installed_is_refused(fresh, tmp_path, monkeypatch):
    missing = [name for name in ("wandb", "trackio") if importlib.util.find_spec(name) is None]
    if not missing:
        pytest.skip("wandb and trackio are both installed")
    (tmp_path / missing[0]).mkdir()  # as wandb leaves one where it has run: Python would import it, as a namespace
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=f"--logger {missing[0]} is not installed; pip install {missing[0]}"):
        run.align(fresh(logger=missing[0]))


def test_a_logger_that_does_not_start_is_refused_in_its_words(fresh):
    """TensorBoard, with a file where its folder should be."""
    config = fresh(logger="tensorboard")
    save(config, config.folder / "config.yaml")  # a run that was stopped at its start
    (config.folder / "logs").touch()
    with pytest.raises(UserError, match=r"^--logger tensorboard did not start: .*logs.*; fix this, or choose another"):
        run.align(config)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without a GPU")
def test_fp16_without_a_gpu_is_refused(fresh):
    with pytest.raises(UserError, match="--precision fp16 needs a GPU"):
        run.align(fresh(precision="fp16"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_steps": 0},
        {"batch_size": 0},
        {"differentiated_steps": 51},
        {"entire_weight": -1.0},
        {"learning_rate": 0.0},
        {"adam_betas": (0.9, 1.0)},
        {"prompt_template": "a photo"},
        {"guidance_scale": 0.5},
        {"guard_diversity": 1.5},
        {"lora_targets": ()},
        {"entire_weight": 0.0, "individual_weight": 0.0, "quality_weight": 0.0},
        {"entire_weight": 0.0, "individual_weight": 0.0, "quality": "none"},
        {"entire_weight": 0.0, "individual_weight": 0.0, "quality_weight": 0.0, "base_weight": 1.0},
    ],
)
def test_a_field_out_of_range_is_refused_by_its_flag(wrong):
    flag = "--" + next(iter(wrong)).replace("_", "-")
    with pytest.raises(UserError, match=f"^{flag} "):
        AlignConfig(**wrong)


def spoiled(folder, copy, part):
    """A checkpoint of which one number is NaN."""
    path = Path(shutil.copytree(folder, copy)) / part / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_norm_out.weight" if part == "unet" else "decoder.conv_out.bias"].view(-1)[0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    return str(copy)


@pytest.mark.parametrize("part, name", [("unet", "unet.conv_norm_out.weight"), ("vae", "vae.decoder.conv_out.bias")])
def test_images_that_are_not_finite_stop_a_run_before_it_begins(fresh, tmp_path, part, name):
    config = fresh()
    config = dataclasses.replace(config, generator=spoiled(config.generator, tmp_path / "sd", part))
    with pytest.raises(UserError, match=f"image 0 of .* is not finite; {name} is not finite: restore the checkpoint"):
        run.align(config)
    assert not config.folder.exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_not_answered_with_a_weight_of_0(fresh, monkeypatch, value):
    """A hook spoils the gradient on its way back; the images are as they were."""
    state = state_of(fresh())
    state.generator.family.unet.conv_in.register_full_backward_hook(
        lambda module, inputs, outputs: tuple(None if each is None else each * value for each in inputs)
    )
    with pytest.raises(
        UserError, match="the entire term's gradient on the adapter is (nan|inf).*--detach-input"
    ) as caught:
        training.check_gradients(state)
    assert "--entire-weight" not in str(caught.value)

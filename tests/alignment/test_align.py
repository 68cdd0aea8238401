"""What an alignment run does and writes, on random-weight miniatures."""

import dataclasses
from contextlib import nullcontext
from io import BytesIO

import numpy as np
import pytest
import torch
from alignment_runs import ADAPTER, lines, state_of
from PIL import Image
from safetensors.torch import load_file

from lbgen.alignment import checkpoint, loop, run
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.monitor import Monitor, check_diversity, diversity_share, evaluation_images
from lbgen.alignment.objective import term_values
from lbgen.configuration.recipes import resolve
from lbgen.configuration.saved import load
from lbgen.errors import UserError
from lbgen.models.quality.antonyms import AntonymQuality

# ---- what a run leaves ----


def test_metrics_have_the_promised_names(finished):
    first, *rest = lines(finished.folder / "metrics.jsonl")
    assert first["step"] == 0 and list(first["gradient_norms"]) == ["entire", "individual", "quality"]
    assert all(norm > 0 for norm in first["gradient_norms"].values())
    names = ["step", "loss", "entire", "individual", "quality", "discriminator", "images_per_second"]
    assert [list(line) for line in rest] == [names] * 2
    assert [line["step"] for line in rest] == [1, 2]


def test_loss_is_the_papers_sum(finished):
    """L = L_en + L_in + 0.1 L_q, from the logged terms."""
    for line in lines(finished.folder / "metrics.jsonl")[1:]:
        assert line["loss"] == pytest.approx(line["entire"] + line["individual"] + 0.1 * line["quality"], rel=1e-5)


def test_evaluations_start_at_the_base_and_move_away(finished):
    evaluations = lines(finished.folder / "evaluations.jsonl")
    assert [line["step"] for line in evaluations] == [0, 1, 2]
    assert evaluations[0]["base_pixel_rms"] == 0 and evaluations[0]["base_feature_cosine"] == pytest.approx(1)
    assert evaluations[1]["base_pixel_rms"] > 0 and evaluations[2]["base_feature_cosine"] < 1
    named = {"diversity", "label_agreement", "edge_density", "colour_entropy", "quality"}
    assert named <= set(evaluations[0])


def test_grids_show_a_category_a_row(finished):
    """Five images of 32 pixels, four a row, against the kept base images."""
    with Image.open(finished.folder / "samples" / "step-000000.png") as image:
        assert image.size == (4 * 32, 2 * 32)
        base = load_file(finished.folder / "samples" / "base.safetensors")["images"]
        assert image.getpixel((3 * 32 + 7, 9)) == tuple(base[3, :, 9, 7].tolist())
        assert image.getpixel((1, 32 + 2)) == tuple(base[4, :, 2, 1].tolist())


def test_evaluation_images_are_spread_and_never_repeat():
    assert evaluation_images(8, 1000) == [(0, 0), (0, 1), (0, 2), (0, 3), (500, 0), (500, 1), (500, 2), (500, 3)]
    assert len(set(evaluation_images(50, 3))) == 50


def test_the_folder_holds_the_resolved_config_and_the_last_two_checkpoints(finished):
    assert load(AlignConfig, finished.folder / "config.yaml") == finished
    assert {path.name for path in (finished.folder / "checkpoints").iterdir()} == {"step-000001", "step-000002"}


def test_a_finished_run_does_nothing_and_says_so(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    assert run.align(finished).steps == 2
    assert "is finished: 2 steps" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}


@pytest.mark.parametrize(
    ("weight", "shown", "hidden"),
    [("quality_weight", ["entire", "individual", "discriminator"], ["quality"]),
     ("entire_weight", ["individual", "quality"], ["entire", "discriminator"])],
)  # fmt: skip
def test_the_progress_line_shows_weighted_terms_alone(weight, shown, hidden, fresh, monkeypatch):
    config, numbers = fresh(**{weight: 0.0}), []
    monkeypatch.setattr(loop, "advance", lambda progress, losses: numbers.append(losses))
    run.align(config)
    logged = lines(config.folder / "metrics.jsonl")[-1]
    assert {*shown, *hidden} <= set(logged)
    assert numbers[-1] == {name: value for name, value in logged.items() if name not in ("step", *hidden)}


def test_a_run_with_other_settings_is_refused(finished):
    with pytest.raises(UserError, match="made with guidance_scale 2.0, this run asks for 3.0"):
        run.align(dataclasses.replace(finished, guidance_scale=3.0))


def test_another_number_of_images_an_update_is_refused(finished):
    with pytest.raises(UserError, match="has 2 images per update, this run 3"):
        run.align(dataclasses.replace(finished, batch_size=3, max_steps=9))


def test_an_extended_run_equals_one_that_was_longer_from_the_start(finished, fresh):
    short, long = fresh(max_steps=1), fresh(max_steps=2)
    run.align(short)
    run.align(long)
    ours, theirs = load_file(long.folder / ADAPTER), load_file(finished.folder / ADAPTER)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# ---- every term reaches the adapter ----


def test_the_averaged_adapter_is_the_average_of_what_training_went_through(fresh, tmp_path):
    """Against the adapters of a run without: from the same updates, by hand, with diffusers' first decays."""
    whole = [fresh(output=tmp_path / str(steps), max_steps=steps) for steps in (1, 2, 3)]
    for config in whole:
        run.align(config)
    first, second, third = (load_file(config.folder / ADAPTER) for config in whole)
    config = fresh(ema_decay=0.2, max_steps=2)
    run.align(config)
    run.align(dataclasses.replace(config, max_steps=3))  # resumed: training goes on from the last, not the average
    averaged = load_file(config.folder / ADAPTER)
    for name, value in averaged.items():
        after_two = first[name] * 2 / 11 + second[name] * 9 / 11
        assert torch.allclose(value, 0.2 * after_two + 0.8 * third[name], rtol=0, atol=1e-6), name
        assert not torch.equal(value, third[name])
    losses = [[line["loss"] for line in lines(each.folder / "metrics.jsonl")[1:]] for each in (config, whole[-1])]
    assert losses[0] == losses[1]
    shown, latest = (lines(each.folder / "evaluations.jsonl")[-1] for each in (config, whole[-1]))
    assert shown["base_feature_cosine"] != latest["base_feature_cosine"]


def test_gradient_norms_equal_finite_differences(fresh):
    """The slope of each weighted term along its own gradient, all steps differentiated, is the gradient's norm."""
    state = state_of(fresh(differentiated_steps=3, batch_size=1))
    for parameter in state.parameters:
        parameter.data += 0.02 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
        )
    state.generator.refresh_sampler()
    norms = loop.measure_gradients(state)
    values = term_values(state.terms, loop.sample_batch(state, 0, differentiate=True))
    step = 1e-2
    for name, term in state.terms.items():
        gradient = torch.autograd.grad(term.weight * values[name], state.parameters, retain_graph=True)
        slopes = []
        for sign in (1, -2, 1):  # ahead, behind, and back
            for parameter, direction in zip(state.parameters, gradient, strict=True):
                parameter.data += sign * step * direction / norms[name]
            batch = loop.sample_batch(state, 0, differentiate=True)
            slopes.append(term.weight * term_values(state.terms, batch)[name].item())
        assert (slopes[0] - slopes[1]) / (2 * step) == pytest.approx(norms[name], rel=0.05), name


def test_a_term_without_gradient_stops_the_run_by_name(fresh, monkeypatch):
    """As Q-Align's public score(), which runs in inference mode."""
    score = AntonymQuality.score
    monkeypatch.setattr(AntonymQuality, "score", lambda self, images, features: score(self, images, features.detach()))
    with pytest.raises(UserError, match="--quality-weight 0.1: the quality term's gradient on the adapter is 0"):
        run.align(fresh())
    assert not fresh().folder.exists()  # so the remedy can be tried in the same folder


@pytest.mark.parametrize("normalize_features", [True, False])
def test_the_semantics_see_every_image_once(fresh, monkeypatch, normalize_features):
    """Features and scores come from one call of transformers' model, in a batch of 2 and for 5 evaluation images."""
    config = fresh(normalize_features=normalize_features)
    state = state_of(config)
    model, seen = state.semantics.model, []
    embed = model.get_image_features
    monkeypatch.setattr(model, "get_image_features", lambda pixels: seen.append(len(pixels)) or embed(pixels))
    loop.sample_batch(state, 0, differentiate=True)
    assert seen == [2]
    Monitor(config, state.vocabulary, state.generator, state.semantics, state.quality, nullcontext)
    assert seen == [2, 2, 2, 1]


def test_a_diverging_run_stops_before_it_spoils_the_adapter(fresh):
    """A learning rate that overflows float32 within two updates."""
    with pytest.raises(UserError, match="not finite; the adapter has diverged: .*lower --learning-rate"):
        run.align(fresh(learning_rate=1e6, max_steps=3))


def test_a_term_of_no_weight_is_logged_and_has_no_gradient(fresh):
    config = fresh(quality="none", individual_weight=0.0, max_steps=1)
    run.align(config)
    first, line = lines(config.folder / "metrics.jsonl")
    assert first["gradient_norms"]["individual"] == first["gradient_norms"]["quality"] == 0
    assert line["loss"] == line["entire"] and line["individual"] > 0 and line["quality"] is None


def test_the_pull_towards_the_base_starts_at_zero_and_acts_later(fresh):
    config = fresh(base_weight=100.0, text_encoder_lora=True)
    run.align(config)
    first, one, two = lines(config.folder / "metrics.jsonl")
    assert first["gradient_norms"]["base"] == one["base"] == 0
    assert two["base"] > 0


def test_a_text_encoder_adapter_is_trained_too(fresh):
    state = state_of(fresh(text_encoder_lora=True, batch_size=1))
    loop.training_step(state, 0)
    moved = {name.split(".")[0] for name, p in state.generator.adapter_parameters() if p.grad.abs().sum() > 0}
    assert moved == {"unet", "text_encoder"}


def test_bf16_reaches_the_adapter_and_keeps_it_in_fp32(fresh):
    config = fresh(precision="bf16", max_steps=1)
    run.align(config)
    assert all(norm > 0 for norm in lines(config.folder / "metrics.jsonl")[0]["gradient_norms"].values())
    assert {tensor.dtype for tensor in load_file(config.folder / ADAPTER).values()} == {torch.float32}


def test_the_released_scripts_objective(fresh, finished):
    """Its one term, its texts (bare names of the first categories) and its features (not normalised)."""
    base = dataclasses.asdict(fresh())
    recipe = resolve(AlignConfig, "released-code", {})
    objective = ("individual_weight", "quality_weight", "discriminator_texts", "discriminator_template")
    changes = {name: getattr(recipe, name) for name in (*objective, "normalize_features", "entire_weight")}
    state = state_of(AlignConfig(**base | changes))
    batch = loop.sample_batch(state, 3, differentiate=False)
    assert [term.weight for term in state.terms.values()] == [1.0, 0.0, 0.0]
    assert state.discriminator_texts[:2] == ["cat", "dog"] and loop.real_category_indices(state, 3) == [0, 1]
    assert not torch.allclose(batch.discriminator_features.norm(dim=-1), torch.ones(2), atol=1e-2)
    assert torch.allclose(batch.features.norm(dim=-1), torch.ones(2))


# ---- the guard, the loggers, the recipes ----


def test_the_guard_warns_or_stops_below_its_share(fresh):
    assert check_diversity(fresh(), 5, 0.7) is None
    assert "step 5: diversity (Vendi score less 1) fell to 69% of the base" in check_diversity(fresh(), 5, 0.69)
    assert check_diversity(fresh(guard="off"), 5, 0.1) is None
    assert "go on from here with --guard warn" in check_diversity(fresh(guard="stop"), 5, 0.1)


def test_diversity_is_compared_above_its_floor():
    """Four equal images have a Vendi score of 1; a base model of equal images has nothing to lose."""
    assert diversity_share(1.0, 1.6) == 0
    assert diversity_share(1.3, 1.6) == pytest.approx(0.5)
    assert diversity_share(1.0, 1.0) == diversity_share(1.0, 1.0001) == 1


def test_a_guard_that_stops_has_saved_and_the_run_goes_on_from_there(fresh, finished, monkeypatch):
    monkeypatch.setattr(loop, "diversity_share", lambda diversity, base: 0.1 if diversity != base else 1.0)
    config = fresh(guard="stop", checkpoint_every=100)
    with pytest.raises(UserError, match="step 1: diversity"):
        run.align(config)
    assert checkpoint.newest(config.folder).name == "step-000001"
    run.align(dataclasses.replace(config, guard="warn"))
    ours, theirs = load_file(config.folder / ADAPTER), load_file(finished.folder / ADAPTER)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_tensorboard_has_numbers_pictures_and_configuration_under_the_folders_name(fresh):
    """Read back with TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = fresh(logger="tensorboard")
    run.align(config)
    (folder,) = {path.parent for path in config.folder.rglob("events.out.tfevents.*")}
    assert folder.name == config.folder.name
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    for file, name in (("metrics", "loss"), ("metrics", "discriminator"), ("evaluations", "diversity")):
        expected = {line["step"]: line[name] for line in lines(config.folder / f"{file}.jsonl") if name in line}
        shown = {event.step: event.value for event in events.Scalars(f"{file}/{name}")}
        assert shown == pytest.approx(expected)
    logged = {event.step: BytesIO(event.encoded_image_string) for event in events.Images("samples")}
    grids = {step: np.asarray(Image.open(content)) for step, content in logged.items()}
    files = {int(path.stem[5:]): np.asarray(Image.open(path)) for path in (config.folder / "samples").glob("*.png")}
    assert grids.keys() == files.keys() == {0, 1, 2}
    assert all((grids[step] == files[step]).all() for step in files)
    (text,) = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("config/text_summary")]
    assert (config.folder / "config.yaml").read_text() in text


def test_without_a_number_short_runs_evaluate_few_images_and_a_resumed_run_keeps_its_own(fresh):
    """A quarter of the images trained on, from 4 to 32; a run that is made longer stays comparable with itself."""

    def number(**changes):
        return run.with_evaluation_images(fresh(evaluation_images=None, batch_size=4, **changes)).evaluation_images

    assert [number(max_steps=updates) for updates in (1, 8, 32, 1000)] == [4, 8, 32, 32]
    short = fresh(evaluation_images=None, batch_size=2, max_steps=1)
    run.align(short)
    run.align(dataclasses.replace(short, max_steps=17))  # 17 updates from the start would evaluate 8
    assert lines(short.folder / "evaluations.jsonl")[-1]["step"] == 17
    (images,) = load_file(short.folder / "samples/base.safetensors").values()
    assert len(images) == 4


@pytest.mark.parametrize("logger", ["wandb", "trackio"])
def test_other_loggers_have_them_too(fresh, tmp_path, monkeypatch, logger):
    """Logging to local files, which hold names and numbers as text."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for variable in ("WANDB_DIR", "TRACKIO_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "logged"))
    (tmp_path / "logged").mkdir()
    library = pytest.importorskip(logger)
    config = fresh(logger=logger)
    run.align(config)
    if logger == "wandb":  # its service may still be writing
        library.teardown()
        pictures = [np.asarray(Image.open(path)) for path in (tmp_path / "logged").rglob("media/images/samples_*.png")]
        grids = [np.asarray(Image.open(path)) for path in (config.folder / "samples").glob("*.png")]
        assert len(pictures) == len(grids) == 3
        assert all(any((picture == grid).all() for picture in pictures) for grid in grids)
    logged = b"".join(path.read_bytes() for path in (tmp_path / "logged").rglob("*") if path.is_file())
    assert config.folder.name.encode() in logged and b"discriminator_learning_rate" in logged
    for file, name in (("metrics", "loss"), ("metrics", "discriminator"), ("evaluations", "diversity")):
        values = [line[name] for line in lines(config.folder / f"{file}.jsonl") if name in line]
        assert values and all(str(value).encode() in logged for value in values)
        assert f"{file}/{name}".encode() in logged


@pytest.mark.parametrize("recipe", ["paper", "released-code"])
def test_recipes_resolve_and_have_the_references_settings(recipe):
    """METHOD: DDPM 50, guidance 2, K 5, rank and alpha 128, the rates and clips of both optimisers, fp16."""
    c = resolve(AlignConfig, recipe, {})
    assert (c.scheduler, c.steps, c.guidance_scale, c.differentiated_steps) == ("ddpm", 50, 2.0, 5)
    assert (c.rank, c.alpha, c.lora_targets) == (128, 128, ("to_q", "to_k", "to_v", "to_out.0"))
    assert (c.learning_rate, c.weight_decay, c.max_grad_norm) == (2e-5, 1e-2, 0.1)
    assert (c.discriminator_learning_rate, c.discriminator_betas[0]) == (1e-5, 0.0)
    assert c.discriminator_max_grad_norm == {"paper": 1.0, "released-code": 0.0}[recipe]
    assert (c.batch_size, c.precision, c.gradient_checkpointing) == (4, "fp16", True)

"""Runs that are killed, interrupted or spread over processes end as one that was left alone."""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess

import pytest
import torch
from alignment_runs import ADAPTER, lines, state_of
from folders import contents
from safetensors.torch import load_file
from trajectories import shake, write_as_earlier

from lbgen import cli
from lbgen.alignment import checkpoint, loop, run
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.state import AlignmentState
from lbgen.configuration.saved import load, save
from lbgen.errors import Interrupted, UserError

context = multiprocessing.get_context("forkserver")
pytestmark = pytest.mark.usefixtures("warm_processes")


@pytest.fixture(scope="module")
def config(tiny_config, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    changes = {"max_steps": 5, "checkpoint_every": 2, "evaluate_every": 2, "discriminator_warmup_steps": 1}
    return dataclasses.replace(tiny_config, output=output, **changes)


@pytest.fixture(scope="module")
def whole(config):
    """The run that nothing happened to."""
    run.align(config)
    return config


def where(name):
    """The module in which a run finds a function that it calls."""
    return loop if name == "append_line" else checkpoint


def align_until(config, name, calls):
    """Align, and be killed by the system at the given call of a function; in a process of its own."""
    place = where(name)
    function, left = getattr(place, name), [calls]

    def fatal(*arguments):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)

    setattr(place, name, fatal)
    run.align(config)


def align_slowly(config, begun, goes_on):
    """Align, and wait after the first update until the test goes on; in a process of its own."""
    append = loop.append_line

    def waiting(path, record):
        append(path, record)
        if record["step"] == 1 and "loss" in record:
            begun.set()
            goes_on.wait(60)

    loop.append_line = waiting
    run.align(config)


def command_line_until(argv, signum, step):
    """`lbgen align`, signalled once it writes that step's metrics."""
    append = loop.append_line

    def signalled(path, record):
        append(path, record)
        if record["step"] == step and "loss" in record:
            os.kill(os.getpid(), signum)

    loop.append_line = signalled
    cli.main(argv)


def ended(target, *arguments):
    """Exit code of the call in a process of its own."""
    process = context.Process(target=target, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode


def without_speed(path):
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines(path)]


def assert_equal_runs(ours, theirs):
    """Adapters to the bit, and every line of metrics and evaluations but the speed."""
    a, b = load_file(ours.folder / ADAPTER), load_file(theirs.folder / ADAPTER)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert without_speed(ours.folder / name) == without_speed(theirs.folder / name)
    assert {p.name for p in (ours.folder / "checkpoints").iterdir()} == {"step-000004", "step-000005"}


def test_killed_at_any_moment_and_resumed_the_run_ends_bit_identical(whole, tmp_path):
    """SIGKILL before the first checkpoint, within one, after one, and when only the last marker is missing."""
    killed = dataclasses.replace(whole, output=tmp_path / "run")
    moments = [
        ("append_line", 3),  # after the first update
        ("mark_complete", 1),  # the first checkpoint has no marker
        ("clean", 2),  # the first checkpoint is in place (the first call is the start's)
        ("append_line", 2),  # resumed, and again an update later
        ("mark_complete", 2),  # the last checkpoint has no marker
        ("publish_adapter", 1),  # it is in place, its adapter not yet published
    ]
    for name, calls in moments:
        assert ended(align_until, killed, name, calls) == -signal.SIGKILL, (name, calls)
    assert ended(run.align, killed) == 0
    assert_equal_runs(killed, whole)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_next_start_goes_on_bit_identically(whole, tmp_path, signum):
    stopped = dataclasses.replace(whole, output=tmp_path / "run")
    save(stopped, tmp_path / "recipe.yaml")
    argv = ["align", "--recipe", str(tmp_path / "recipe.yaml")]
    assert ended(command_line_until, argv, signum, 3) == 128 + signum
    assert checkpoint.newest(stopped.folder).name == "step-000003"
    assert ended(cli.main, argv) == 0
    assert_equal_runs(stopped, whole)


@pytest.mark.parametrize("moment", ["append_line", "publish_adapter"])
def test_a_signal_in_the_last_update_or_after_it_ends_the_program_with_the_run_whole(whole, tmp_path, moment, capsys):
    config = dataclasses.replace(whole, output=tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        function = getattr(where(moment), moment)

        def signalled(path, second):
            function(path, second)
            if moment == "publish_adapter" or (second["step"] == 5 and "loss" in second):
                os.kill(os.getpid(), signal.SIGINT)

        patch.setattr(where(moment), moment, signalled)
        with pytest.raises(Interrupted, match="run is finished; the adapter is in") as ended:
            run.align(config)
    assert ended.value.signum == signal.SIGINT
    answer = "lbgen: interrupted; finishing this update and its evaluation, and saving a checkpoint first (once more "
    assert answer in capsys.readouterr().err
    assert_equal_runs(config, whole)


def test_a_second_run_in_the_folder_of_one_that_goes_on_is_refused(whole, tmp_path):
    """It changes nothing there; the first ends as one that was left alone, and leaves the folder free."""
    config, begun, goes_on = dataclasses.replace(whole, output=tmp_path / "run"), context.Event(), context.Event()
    first = context.Process(target=align_slowly, args=(config, begun, goes_on))
    first.start()
    assert begun.wait(60)
    files = contents(config.folder)
    with pytest.raises(UserError, match="run: another run is writing there; wait for it, or choose another --output$"):
        run.align(config)
    assert contents(config.folder) == files
    goes_on.set()
    first.join(60)
    assert first.exitcode == 0
    assert_equal_runs(config, whole)
    assert run.align(config).steps == 5


def test_an_older_adapter_is_not_taken_for_the_finished_one(whole, tmp_path):
    """Finished with 2 updates, extended, killed after the checkpoint of 4, and asked for 4."""
    config = dataclasses.replace(whole, output=tmp_path / "run", max_steps=2)
    run.align(config)
    old = (config.folder / ADAPTER).read_bytes()
    longer = dataclasses.replace(config, max_steps=5)
    assert ended(align_until, longer, "mark_complete", 2) == -signal.SIGKILL
    four = dataclasses.replace(config, max_steps=4)
    assert run.align(four).steps == 4
    published = (config.folder / ADAPTER).read_bytes()
    newest = checkpoint.newest(config.folder)
    assert newest.name == "step-000004" and published != old
    assert published == (newest / ADAPTER).read_bytes()
    assert lines(config.folder / "metrics.jsonl")[-1]["step"] == 4
    assert load(AlignConfig, config.folder / "config.yaml").max_steps == 4


def test_the_released_texts_keep_the_size_of_a_process_batch(whole):
    assert "batch_size" in run.may_change(whole)
    assert "batch_size" not in run.may_change(dataclasses.replace(whole, discriminator_texts="released-code"))


def test_a_half_written_checkpoint_is_passed_over(whole, tmp_path):
    """One with a later step than the whole one, as an interrupted copy would leave it."""
    config = dataclasses.replace(whole, output=tmp_path / "run", max_steps=4)
    run.align(config)
    half = checkpoint.checkpoint_path(config.folder, 9)
    half.mkdir()
    (half / "state.pt").write_bytes(b"half")
    run.align(dataclasses.replace(config, max_steps=5))
    assert_equal_runs(config, whole)


@pytest.mark.parametrize("of_version", ["this", "an earlier"])
def test_where_alpha_is_not_the_rank_the_parameters_come_back_to_the_bit(tiny_config, tmp_path, of_version):
    """The adapter's file has B times 3 / 2, which rounds; in earlier versions it alone held the parameters."""
    config = dataclasses.replace(tiny_config, output=tmp_path / "run", alpha=3, text_encoder_lora=True)
    state = state_of(config)
    shake(state.generator, 6)
    state.save()
    folder = state.checkpoint_path
    if of_version == "an earlier":
        write_as_earlier(state.generator, folder / "adapter")
        tensors = checkpoint.load_tensors(folder, torch.device("cpu"))
        checkpoint.save_tensors(folder, {name: part for name, part in tensors.items() if name != "parameters"})
        (folder / checkpoint.MARKER).unlink()
        checkpoint.mark_complete(folder, state.progress)
    again = AlignmentState(config, state.vocabulary, state.accelerator, folder)
    assert len(again.parameters) == 80
    for ours, theirs in zip(state.parameters, again.parameters, strict=True):
        assert torch.equal(ours, theirs) and theirs.requires_grad
    a, b = (loop.training_step(each, 0) for each in (state, again))
    assert a == b and all(torch.equal(x, y) for x, y in zip(state.parameters, again.parameters, strict=True))


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    # As it chooses by itself where there are several GPUs; its --cpu starts one process only, unless MPI starts more.
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_with_half_the_batch_each_give_the_same_adapter(whole, tmp_path, launcher, warm_python):
    """Within float tolerance; the differences between the adapters of one step and five are larger."""
    halves = dataclasses.replace(whole, output=tmp_path / "run", batch_size=1)
    save(halves, tmp_path / "recipe.yaml")
    result = subprocess.run(
        [warm_python, "-m", *LAUNCHERS[launcher], "-m", "lbgen", "align", "--recipe", str(tmp_path / "recipe.yaml")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    ours, theirs = load_file(halves.folder / ADAPTER), load_file(whole.folder / ADAPTER)
    assert all(torch.allclose(ours[name], theirs[name], atol=2e-5) for name in theirs)
    assert any(theirs[name].abs().max() > 1e-3 for name in theirs if "lora_B" in name or "lora.up" in name)
    for ours_line, line in zip(
        lines(halves.folder / "metrics.jsonl"), lines(whole.folder / "metrics.jsonl"), strict=True
    ):
        assert ours_line.get("loss") == pytest.approx(line.get("loss"), abs=1e-4)
    assert result.stdout.count("gradient norms") == result.stdout.count("2 images (2 processes of 1)") == 1


def test_a_run_of_names_with_underscores_goes_on_as_it_began(tiny_config, tmp_path):
    """Begun by an earlier version, which kept the underscores of a list: the checkpoint has the hash of such names."""
    (tmp_path / "names.txt").write_text("red_fox\npolar bear\nant\n")
    config = dataclasses.replace(
        tiny_config, output=tmp_path / "run", vocabulary=str(tmp_path / "names.txt"), max_steps=1
    )
    run.align(config)
    lines_of = "red_fox\tred_fox\npolar_bear\tpolar bear\nant\tant"
    then, now = (hashlib.sha256(text.encode()).hexdigest() for text in (lines_of, lines_of.replace("\tred_", "\tred ")))
    for path in (config.folder / "provenance.json", *config.folder.glob("checkpoints/*/checkpoint.json")):
        assert now in path.read_text()
        path.write_text(path.read_text().replace(now, then))
    assert run.align(dataclasses.replace(config, max_steps=2)).steps == 2
    described = json.loads((config.folder / "adapter/training.json").read_text())
    assert described["names"] == {"red_fox": "red_fox", "polar_bear": "polar bear", "ant": "ant"}
    (tmp_path / "names.txt").write_text("red_fox\npolar bear\nbee\n")
    with pytest.raises(UserError, match="was made with other categories"):
        run.align(dataclasses.replace(config, max_steps=3))

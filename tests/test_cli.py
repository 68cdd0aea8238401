"""The command line as a program: what it prints, and its exit codes."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import huggingface_hub
import pytest
import torch
from command_line import refused, refused_here, run
from diffusers import StableDiffusionPipeline
from huggingface_hub import constants
from transformers import CLIPModel

import lbgen
from lbgen.cli import VERBS, main
from lbgen.runs.processes.waiting import SHORT_WAITING


@pytest.fixture(autouse=True)
def _sigterm_handler_restored():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_version_and_help():
    assert run("--version").stdout == f"lbgen {lbgen.__version__}\n"
    shown = run("--help")
    assert shown.returncode == 0 and all(verb in shown.stdout for verb in [*VERBS, "export"])


def test_lbgen_alone_prints_the_help_and_fails():
    shown = run()
    assert (shown.returncode, shown.stdout) == (2, "") and shown.stderr == run("--help").stdout


def test_help_imports_no_large_library():
    """The help of every verb in one process."""
    program = """
import contextlib, sys
from lbgen.cli import VERBS, main
for verb in VERBS:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(None):
        main([verb, "--help"])
print(*sys.modules)
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"numpy", "pyarrow", "huggingface_hub", "torch", "PIL"} & set(shown.stdout.split()) == set()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_help_fits_the_terminal_and_has_the_most_used_flags_first(monkeypatch, capsys, verb, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns and lines[0].startswith(f"usage: lbgen {verb} ")
    if verb == "align":
        flags = [line.split()[0].strip(",") for line in lines if line.startswith("  --")]
        assert flags[:6] == ["--recipe", "--vocabulary", "--generator", "--output", "--max-steps", "--batch-size"]
        assert {"objective:", "denoising trajectory:", "discriminator:"} < set(lines)


def in_terminal(monkeypatch, capsys, **environment: str) -> str:
    """What `lbgen align --help` prints where stdout says that it is a terminal."""
    for name, value in {"NO_COLOR": "", "TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(SystemExit):
        main(["align", "--help"])
    return capsys.readouterr().out


def test_help_is_coloured_in_a_terminal_alone(monkeypatch, capsys):
    """The coloured text without its escape codes is the plain text."""
    shown = in_terminal(monkeypatch, capsys)
    assert "\033[1mmost used:\033[0m" in shown and "\033[36m--max-steps\033[0m N" in shown
    assert "clip-vit-l-14" in shown  # no flag, whatever its hyphens
    uncoloured = in_terminal(monkeypatch, capsys, NO_COLOR="1")
    assert "\033" not in uncoloured and re.sub(r"\033\[\d+m", "", shown) == uncoloured
    assert "\033" not in in_terminal(monkeypatch, capsys, TERM="dumb")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("lbgen al", ["align"]),
        ("lbgen align --max-s", ["--max-steps"]),
        ("lbgen align --scheduler dd", ["ddpm", "ddim"]),
        ("lbgen generate --repa", []),
        ("lbgen verify --repa", ["--repair"]),
        ("lbgen export mic", ["microworld"]),
        ("lbgen export adapter --format ko", ["kohya"]),
        ("lbgen export adapter --form", ["--format"]),
        ("lbgen align --scheduler = dd", ["ddpm", "ddim"]),
        ("lbgen align --recipe pap", ["paper"]),
        ("lbgen align --vocabulary x", []),
        ("lbgen transfer --method fin", ["finetune"]),
        ("lbgen generate --screen dup", ["duplicate"]),
        ("lbgen --vers", ["--version"]),
        ("lbgen align", ["align"]),
    ],
)
def test_bash_completes_verbs_flags_and_values(tmp_path, words, expected):
    """By bash itself, from the script that it is given."""
    (tmp_path / "script").write_text(run("--print-completion", "bash").stdout)
    *before, last = words.split()
    program = (
        f"source {tmp_path}/script; COMP_WORDS=({words}); COMP_CWORD={len(before)}; "
        'PATH= _lbgen; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    printed = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert printed.stderr == "" and printed.stdout.split() == expected


def test_zsh_gets_the_same_script_after_its_own_preparation():
    assert run("--print-completion", "zsh").stdout.endswith(run("--print-completion", "bash").stdout)


@pytest.mark.parametrize("argv", [["--help"], ["align", "--help"], ["generate", "--help"], ["align", "--nope"]])
def test_help_and_refusals_import_no_torch(argv):
    """Python itself lists what it imported."""
    command = [sys.executable, "-X", "importtime", "-m", "lbgen", *argv]
    imported = subprocess.run(command, capture_output=True, text=True).stderr
    assert "lbgen.configuration.flags" in imported
    assert not [line for line in imported.splitlines() if line.endswith((" torch", " diffusers", " transformers"))]


def test_the_flags_that_other_programs_rely_on(capsys):
    """The list of the issue that defines them."""
    relied_on = {
        "align": "recipe vocabulary generator semantics quality output max-steps batch-size checkpoint-every seed",
        "generate": "generator adapter vocabulary images-per-category output seed",
        "quickstart": "output",
    }
    for verb, flags in relied_on.items():
        with pytest.raises(SystemExit) as ended:
            main([verb, "--help"])
        shown = capsys.readouterr().out
        assert ended.value.code == 0 and all(f"--{flag} " in shown for flag in flags.split())


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--version=3 --xyzzy", "see lbgen --help"),
        ("alain", "invalid choice: 'alain'"),
        ("align --max-step 3", "unrecognized arguments: --max-step 3; did you mean --max-steps?"),
        ("generate --image-per-category=3", "--image-per-category=3; did you mean --images-per-category?"),
        ("verify here --repare", "unrecognized arguments: --repare; did you mean --repair?"),
        (
            "align --independence-form kernel",
            "--independence-form: this version of lbgen no longer has this field; remove it",
        ),
        ("align --independence-r1=1.0", "--independence-r1: this version of lbgen no longer has this field; remove it"),
        ("align --xyzzy 1", "unrecognized arguments: --xyzzy 1; see lbgen align --help"),
        (
            "generate --recipe microworld",
            "--recipe microworld: it belongs to lbgen align; lbgen generate has div",
        ),
        ("align --recipe fast-dpm", "lbgen generate; lbgen align has independent, microworld, microworld-r"),
        ("quickstart --recipe paper", "it belongs to lbgen align; lbgen quickstart has none"),
        ("align --max-steps", "--max-steps: expected one argument; see lbgen align --help"),
        ("align --max-steps ten", '--max-steps: "ten" is not a whole number'),
        ("align --max-steps 0", "--max-steps 0: give 1 or more"),
        ("align --scheduler euler", '--scheduler: "euler" is not one of ddpm, ddim, pndm, dpm++'),
        ("generate --scheduler euler", '--scheduler: "euler" is not one of ddpm, ddim, pndm, dpm++'),
        ("align --guard maybe", '--guard: "maybe" is not one of warn, stop, off'),
        ("align --recipe nope", "no such file, nor one of the built-in recipes (independent, microworl"),
        ("export sd15 here", "invalid choice: 'sd15'"),
        ("export microworld", "required: DIR"),
    ],
)
def test_wrong_command_lines_are_refused_in_one_line(capsys, argv, expected):
    assert expected in refused_here(capsys, *argv.split())


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        ("seed: 1\nmax_stepz: 3", "line 2: max_stepz", "no such field; did you mean max_steps?"),
        ("max_steps: ten", "line 1: max_steps", '"ten" is not a whole number'),
        ("# mine\n\nscheduler: foo", "line 3: scheduler", '"foo" is not one of ddpm, '),
        ("base: microworld\nrank: -1", "line 2: rank -1", "give 1 to 4096"),
        ("steps: 9\ndifferentiated_steps: 10", "line 2: differentiated_steps 10", "give 1 to 9 (--steps)"),
        ("{seed: 1,\n  rank: 3,\n  rank: 0}", "line 3: rank 0", "give 1 to 4096"),
        ("base: below.yaml\nseed: 1", "line 2: rank -2", "give 1 to 4096"),
        ("seed: 1\nbase: 3", "line 2: base", "give the name of a built-in recipe or a file"),
    ],
)
def test_a_wrong_recipe_is_refused_by_file_line_and_field(capsys, tmp_path, text, place, expected):
    """Against line numbers counted by eye."""
    (tmp_path / "below.yaml").write_text("# other\nrank: -2")
    (tmp_path / "mine.yaml").write_text(text)
    name = "below.yaml" if "below" in text else "mine.yaml"
    message = refused_here(capsys, "align", "--recipe", str(tmp_path / "mine.yaml"))
    assert message.startswith(f"lbgen: {tmp_path}/{name}, {place}: {expected}")


def test_a_flag_in_place_of_a_recipes_value_is_refused_as_a_flag(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("rank: 3\n")
    message = refused_here(capsys, "align", "--recipe", str(tmp_path / "mine.yaml"), "--rank", "0")
    assert message == "lbgen: --rank 0: give 1 to 4096\n"


def test_a_refusal_is_one_line_whatever_was_typed(capsys):
    assert "--recipe a b: no such file" in refused_here(capsys, "align", "--recipe", "a\nb")


@pytest.mark.parametrize("verb", ["align", "generate"])
def test_a_wrong_vocabulary_is_refused_before_anything_is_written(verb, tmp_path):
    (tmp_path / "animals.txt").write_text("n1 cat\n../cat big cat\n")
    result = run(verb, "--generator", "microworld", "--vocabulary", "animals.txt", "--output", "out", cwd=tmp_path)
    assert 'animals.txt, line 2: id "../cat" would leave the dataset folder; use letters' in refused(result)
    assert [path.name for path in tmp_path.iterdir()] == ["animals.txt"]


@pytest.mark.parametrize(
    "argv",
    [
        "generate --generator {nothing}",
        "generate --generator microworld --balance scene --screen-semantics {nothing}",
        "generate --generator microworld --size 7 7 --shard-of 0/2",
        "align --generator {nothing}",
        "audit {photographs} --semantics {nothing}",
    ],
)
def test_models_that_do_not_do_are_refused_and_no_folder_is_left(capsys, tmp_path, argv):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "photographs/cat").mkdir(parents=True)
    (tmp_path / "photographs/cat/1.png").touch()
    places = {name: tmp_path / name for name in ("nothing", "photographs")}
    words = [word.format(**places) for word in argv.split()]
    vocabulary = [] if words[0] == "audit" else ["--vocabulary", "microworld"]
    refused_here(capsys, *words, *vocabulary, "--output", str(tmp_path / "outer/out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nothing", "photographs"]


@pytest.mark.parametrize(
    ("verb", "flag", "name", "embedded"),
    [
        ("generate --balance scene", "--screen-semantics", "somebody/space", "microworld"),
        ("align", "--semantics", "somebody/space", "microworld"),
        ("audit here", "--semantics", "somebody/space", "microworld"),
        ("align", "--semantics", "open_clip:ViT-B-32/openai", "microworld"),
        ("align --semantics microworld", "--quality", "q-align", "antonyms"),
    ],
)
def test_a_model_that_cannot_be_had_is_answered_with_the_one_that_is_here(
    monkeypatch, capsys, tmp_path, verb, flag, name, embedded
):
    """As for generators, below; here the hub answers nobody, and its cache is empty."""

    def unreachable(*_, **__):
        raise OSError("no connection")

    if name.startswith("open_clip:"):
        pytest.importorskip("open_clip", reason="the extra open_clip is not installed")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here/cat").mkdir(parents=True)
    (tmp_path / "here/cat/1.png").touch()
    rest = [] if verb.startswith("audit") else ["--generator", "microworld", "--vocabulary", "microworld"]
    with pytest.raises(SystemExit):
        main([*verb.split(), *rest, flag, name, "--output", "out"])
    said, shown = capsys.readouterr()
    assert said == "" and shown.startswith(f"lbgen: {flag} {name}") and shown.count("\n") == 1
    assert " cannot be loaded: there is no such folder" in shown
    assert f"or {flag} {embedded}, which comes with lbgen (no connection)" in shown


def test_weights_that_cannot_be_had_are_one_line_at_once(monkeypatch, tmp_path):
    """A hub where nobody answers: no retries, no noise of other libraries."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    message = refused(run("generate", "--vocabulary", "microworld", "--output", "out", cwd=tmp_path))
    assert "generator stable-diffusion-v1-5/stable-diffusion-v1-5 cannot be loaded: " in message
    assert "or --generator microworld, which comes with lbgen" in message and "refused" in message


def test_export_writes_the_folders_and_says_where(tmp_path):
    result = run("export", "microworld", "models", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (
        result.stdout
        == "the micro world is in models: generator, flow, pairs (diffusers) and semantics (transformers)\n"
    )
    classes = {"generator": "StableDiffusionPipeline", "pairs": "StableDiffusionPipeline", "flow": "ZImagePipeline"}
    for name, pipeline in classes.items():
        assert json.loads((tmp_path / "models" / name / "model_index.json").read_text())["_class_name"] == pipeline
    assert json.loads((tmp_path / "models" / "semantics" / "config.json").read_text())["model_type"] == "clip"


def test_exported_folders_run_in_plain_loaders_with_nothing_asked(tmp_path):
    """Stored in fp16, computed in fp32: of two precisions in one pipeline neither loader would complain."""
    lbgen.export_microworld(tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "generator")
    assert pipeline("fish", num_inference_steps=2, output_type="np").images.shape == (1, 64, 64, 3)
    model, pixels = CLIPModel.from_pretrained(tmp_path / "semantics"), torch.rand(1, 3, 64, 64)
    assert model.get_image_features(pixels).pooler_output.dtype == torch.float32


def test_export_to_what_is_no_folder_is_refused(capsys, tmp_path):
    (tmp_path / "taken").touch()
    assert "taken: File exists; choose a folder" in refused_here(
        capsys, "export", "microworld", str(tmp_path / "taken")
    )


def test_export_to_a_full_disk_or_over_a_file_is_refused(capsys, tmp_path):
    """Linux's device that is always full, and a file in the place of a folder."""
    (tmp_path / "a" / "generator").mkdir(parents=True)
    (tmp_path / "a" / "generator" / "model_index.json").symlink_to("/dev/full")
    assert "No space left on device" in refused_here(capsys, "export", "microworld", str(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "semantics").touch()
    assert "b: File exists; choose a folder" in refused_here(capsys, "export", "microworld", str(tmp_path / "b"))


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that the system lets nobody write")
@pytest.mark.parametrize("verb", ["generate", "quickstart", "audit photographs --semantics microworld"])
def test_an_output_that_cannot_be_made_is_refused_in_one_line(capsys, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs/cat").mkdir(parents=True)
    (tmp_path / "photographs/cat/1.png").touch()
    message = refused_here(capsys, *verb.split(), "--output", "/proc/x")
    assert message.startswith("lbgen: --output /proc/x: ") and "choose a" in message


@pytest.mark.parametrize("place", ["taken", "taken/run"])
def test_align_into_a_file_is_refused_in_one_line(capsys, tmp_path, place):
    (tmp_path / "taken").touch()
    assert "taken is a file; choose a folder" in refused_here(capsys, "align", "--output", str(tmp_path / place))


def test_characters_that_the_terminals_encoding_lacks_are_escaped(tmp_path):
    """Where Python itself would raise UnicodeEncodeError, in the answer and in a refusal."""
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    (tmp_path / "names.txt").write_text("café\n鍵\n")
    program = "import sys; from lbgen.cli import main; main(sys.argv[1:])"
    for argv, code in (["generate", "--print-config", "--output", "鍵"], 0), (["generate", "--recipe", "鍵"], 2):
        command = [sys.executable, "-c", program, *argv]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert ended.returncode == code and "\\u9375" in ended.stdout + ended.stderr, ended.stderr


OTHER_VERB = """
import time, lbgen.cli
def stand_in(config):
    print("started", flush=True)
    {body}
lbgen.generate = stand_in
lbgen.cli.main(["generate"])
"""


@pytest.mark.parametrize(
    ("signum", "code", "message"),
    [(signal.SIGTERM, 143, "lbgen: terminated"), (signal.SIGINT, 130, "lbgen: interrupted")],
)
@pytest.mark.parametrize(("verb", "promise"), [("generate", "; give the same command again to go on"), ("plan", "")])
def test_a_signal_ends_a_verb_with_its_code(signum, code, message, verb, promise):
    """A verb that waits, in the place of one that works: no other is slow enough to be hit for certain."""
    command = [sys.executable, "-c", OTHER_VERB.format(body="time.sleep(60)").replace("generate", verb)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    process.send_signal(signum)
    assert process.communicate(timeout=60)[1] == f"{message}{promise}\n"
    assert process.returncode == code


def test_what_a_verb_saved_is_said_and_a_bug_is_a_traceback_with_code_1():
    saying = "from lbgen.errors import Interrupted; raise Interrupted(15, 'step 3 saved')"
    ended = subprocess.run([sys.executable, "-c", OTHER_VERB.format(body=saying)], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (143, "lbgen: step 3 saved\n")
    ended = subprocess.run([sys.executable, "-c", OTHER_VERB.format(body="1 / 0")], capture_output=True, text=True)
    assert ended.returncode == 1 and "ZeroDivisionError" in ended.stderr


def test_public_names_are_the_functions_whatever_was_imported_before():
    """`lbgen.quickstart` is a function and a module; importing the module must not hide the function."""
    program = (
        "import lbgen.quickstart, lbgen; from lbgen import quickstart; print(callable(lbgen.quickstart), quickstart)"
    )
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert printed.stdout.startswith("True <function quickstart"), printed.stderr


def test_type_checkers_see_the_public_names_where_they_are_found():
    """The imports for type checkers, read from the source, against the table that Python uses."""
    tree = ast.parse(Path(lbgen.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)]
    assert {alias.asname: node.module for node in block.body for alias in node.names} == lbgen.PUBLIC


def test_unknown_attributes_are_refused_as_usual():
    with pytest.raises(AttributeError, match="no attribute 'alain'"):
        lbgen.alain  # noqa: B018
    assert set(dir(lbgen)) == set(lbgen.__all__)


@pytest.mark.parametrize(
    "end, code, message",
    [
        ("| true", 141, ""),
        (
            "> /dev/full",
            2,
            "lbgen: standard output or a file: No space left on device; make room, or choose another place\n",
        ),
    ],
)
def test_a_closed_or_full_standard_output(end, code, message):
    """No traceback; bash gives the exit code of lbgen itself."""
    command = f"{sys.executable} -m lbgen --version {end}; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (code, message)


HALF = Path(__file__).parent / "earlier/half"


@pytest.mark.parametrize(
    "command, code",
    [
        (f"verify {HALF} | true", 141),
        (f"verify {HALF} >&-", 3),
        (f"verify {HALF} 2>&-", 3),
        (f"verify {HALF} 2>/dev/full", 3),
        ("verify nowhere 2>/dev/full", 2),
        ("verify nowhere --verbose 2> >(true)", 2),
        ("2> >(true)", 2),
        ("verify nowhere >&- 2>&- <&-", 2),
        ("plan 2>/dev/full", 2),
        ("--help >/dev/full 2>/dev/full", 2),
        ("recipes >&- 2>&-", 0),
    ],
)
def test_closed_or_full_standard_streams_end_no_run_but_a_pipe_nobody_reads(tmp_path, command, code):
    """The exit codes of the documentation (the dataset lacks a shard), whatever becomes of the lines."""
    command = f"{sys.executable} -m lbgen {command}; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert result.returncode == code and "Traceback" not in result.stderr, result.stderr
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "flags",
    ["--rank 1000000", "--learning-rate 1e38", "--size 100000 100000", "--rank 0"],
)
def test_numbers_that_no_machine_could_work_with_are_refused(capsys, flags):
    verb = "generate" if "size" in flags else "align"
    assert "give " in refused_here(capsys, verb, "--output", "x", "--vocabulary", "imagenet-1k", *flags.split())


@pytest.mark.parametrize(
    "asked, spins",
    [
        ({}, "1000"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "0"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "30000000000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
    ],
)
def test_threads_that_wait_spin_briefly_unless_the_user_says_otherwise(asked, spins):
    """What OpenMP itself prints when torch loads it; once by torch, else by its name, as torch takes 2 seconds."""
    program = """
import contextlib, ctypes, lbgen.cli
with contextlib.suppress(SystemExit):
    lbgen.cli.main(["--version"])
"""
    library = next(Path(find_spec("torch").origin).parent.glob("lib/libgomp*"), None)
    program += f"ctypes.CDLL('{library}')" if asked and library else "import torch"
    kept = {name: value for name, value in os.environ.items() if name not in SHORT_WAITING}
    environment = kept | {"OMP_DISPLAY_ENV": "verbose"} | asked
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert f"GOMP_SPINCOUNT = '{spins}'" in shown.stderr

"""The documentation: it builds with strict links, and what it names exists."""

import re
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import families_table
import pytest
import torch
import yaml

import lbgen
from lbgen.cli import VERBS, main
from lbgen.models.checkpoints.known import PIPELINES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TASKS = [page for page in PAGES if page.parent == DOCS]
WRITTEN = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
LONGEST_PAGE = 150


def by_name(page):
    return str(page.relative_to(ROOT))


@pytest.mark.skipif(find_spec("zensical") is None, reason="the extra `docs` is not installed")
def test_the_site_builds_with_strict_links_a_search_and_an_api_reference(tmp_path):
    """In a copy, so that no other build is in the way."""
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("weights", "__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    build = [sys.executable, "-m", "zensical", "build", "--strict"]
    subprocess.run(build, cwd=tmp_path, check=True)
    site = tmp_path / "site"
    assert {page.relative_to(DOCS).with_suffix(".html") for page in PAGES} <= {
        page.relative_to(site) for page in site.rglob("*.html")
    }
    assert "truncated gradient" in (site / "search.json").read_text()
    assert 'id="lbgen.models.sampling.sample"' in (site / "api.html").read_text()
    loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]*)"', (site / "index.html").read_text())
    assert loaded == []  # fonts and scripts come with the site

    (tmp_path / "docs" / "index.md").write_text("[nowhere](nowhere.md)\n")
    assert subprocess.run(build, cwd=tmp_path, capture_output=True).returncode != 0


def test_every_task_is_in_the_table_of_the_first_page():
    linked = set(re.findall(r"\]\((\w+\.md)\)", (DOCS / "index.md").read_text()))
    assert {page.name for page in TASKS} - linked == {"index.md"}


def test_every_page_is_in_the_navigation():
    def files(entry):
        values = entry if isinstance(entry, list) else entry.values() if isinstance(entry, dict) else [entry]
        return [entry] if isinstance(entry, str) else [file for value in values for file in files(value)]

    navigation = files(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(navigation) == [page.relative_to(DOCS).as_posix() for page in PAGES]


@pytest.mark.parametrize("page", TASKS, ids=by_name)
def test_a_page_about_a_task_is_short(page):
    assert len(page.read_text().splitlines()) < LONGEST_PAGE


def anchor(heading):
    """As GitHub and the site make it of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", WRITTEN, ids=by_name)
def test_links_and_pictures_lead_somewhere(page):
    """Also those of README and CONTRIBUTING, which the site does not have, and pictures, which its builder skips."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("http"):
            continue
        file, _, place = target.partition("#")
        found = (page.parent / file) if file else page
        assert found.exists(), f"{page}: {target}"
        if place:
            assert place in map(anchor, re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)), f"{page}: {target}"


@pytest.mark.parametrize("page", WRITTEN, ids=by_name)
def test_scripts_that_pages_name_exist(page):
    named = set(re.findall(r"\bbenchmarks/[\w/.-]+\.(?:py|sh|md|yaml|jsonl)", page.read_text()))
    assert [script for script in sorted(named) if not (ROOT / script).exists()] == []


@pytest.mark.parametrize("page", TASKS, ids=by_name)
def test_source_files_that_pages_name_exist(page):
    named = set(re.findall(r"`((?:src|tests|docs|benchmarks)/[\w/.-]*)`", page.read_text()))
    assert [file for file in sorted(named) if not (ROOT / file).exists()] == []


def test_the_places_of_the_architecture_page_define_what_they_are_said_to():
    """The page's table: a file, a comma, a name that the file defines."""
    places = re.findall(r"`(src/lbgen/[\w/.]+\.py)`, `(\w+)`", (DOCS / "architecture.md").read_text())
    assert len(places) >= 5
    missing = [(file, name) for file, name in places if not defines(ROOT / file, name)]
    assert missing == []


def defines(file, name):
    return re.search(rf"^(?:def|class) {name}\b|^{name}\b.* = ", file.read_text(), re.MULTILINE) is not None


def test_the_tree_of_the_architecture_page_is_the_packages():
    """Folders of the first level, in the page's code block, against the folders on disk."""
    drawn = set(re.findall(r"^  (\w+)/ ", (DOCS / "architecture.md").read_text(), re.MULTILINE))
    package = Path(lbgen.__file__).parent
    assert drawn == {folder.name for folder in package.iterdir() if folder.is_dir() and folder.name != "__pycache__"}


@pytest.fixture(scope="module")
def flags():
    """Every flag of lbgen and of its verbs, as the helps say."""
    found, before = set(), signal.getsignal(signal.SIGTERM)
    for verb in ([], *([name] for name in VERBS)):
        with redirect_stdout(StringIO()) as shown, suppress(SystemExit):
            main([*verb, "--help"])
        found |= set(re.findall(r"--[a-z][a-z0-9-]+", shown.getvalue()))
    signal.signal(signal.SIGTERM, before)
    return found


@pytest.mark.parametrize("page", [*TASKS, ROOT / "README.md"], ids=by_name)
def test_flags_that_pages_name_exist(page, flags):
    """Those of lbgen in code; the flags of other programs stand on lines that begin with these programs."""
    others = re.compile(
        r"^\s*(?:#|ray |srun |python |accelerate |hf )|python benchmarks|accelerate launch|--sets|uv pip"
    )
    lines = [line for line in page.read_text().splitlines() if not others.search(line)]
    named = {flag for line in lines for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", line)}
    assert named - flags - {"--stages", "--categories", "--images", "--memories", "--help"} == set()


def test_the_reference_has_every_public_name():
    text = (DOCS / "api.md").read_text()
    public = [f"::: {module}.{name}\n" for name, module in lbgen.PUBLIC.items()]
    assert [line.strip() for line in public if line not in text] == []


def test_recipes_that_pages_name_exist():
    text = "\n".join(page.read_text() for page in [*TASKS, ROOT / "README.md"])
    named = set(re.findall(r"--recipe ([a-z0-9-]+)(?![\w./-])", text))
    assert {"paper", "diverse-prompts"} <= named
    assert named <= {file.stem for file in Path(lbgen.__file__).parent.glob("configuration/recipes/*/*.yaml")}


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_python_page_runs_on_the_micro_world():
    """Its last example as it stands; the first needs weights, so only its calls are looked at.

    The term of the second is tried on images of one grey.
    """
    stages, term, building_blocks = python_blocks(DOCS / "python.md")
    names = re.findall(r"lbgen\.(\w+)\(", stages)
    assert {"align", "generate", "plan", "verify", "audit"} <= set(names) <= set(lbgen.PUBLIC)
    result = {"lbgen": lbgen}
    exec(term.partition("\n\n\n")[0], result)
    assert result["darkness"](SimpleNamespace(images=torch.full((2, 3, 4, 4), 0.25))).item() == 0.25
    exec(building_blocks, result)
    assert result["images"].shape == (2, 3, 64, 64) and result["cosines"].shape == (2, 2)


def test_the_table_of_families_has_every_family_and_statement_with_tests_that_exist():
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = [test for statement in families_table.STATEMENTS for test in statement.tests]
    assert all(f"def {test}(" in sources for test in named)
    assert len(families_table.FAMILIES) == len(PIPELINES)
    table = [line.split("|")[1:-1] for line in families_table.PAGE.read_text().splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in table[0][1:]] == list(families_table.FAMILIES.values())
    assert [row[0].strip() for row in table[2:]] == [statement.what for statement in families_table.STATEMENTS]
    empty = [
        (row[0].strip(), table[0][place].strip())
        for row in table[2:]
        for place, cell in enumerate(row)
        if cell == " – "
    ]
    unets, refused = ("Stable Diffusion 1.x, 2.x", "Stable Diffusion XL"), ("PixArt-Sigma", "Sana")
    transformers_alone = [("kohya's names", family) for family in (*unets, *refused)]
    assert empty == [*transformers_alone, ("single file", "PixArt-Sigma")]

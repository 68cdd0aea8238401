"""What is said of a dataset once it is whole."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from lbgen.datasets import index
from lbgen.generation.card.describe import rejection_line
from lbgen.generation.run import generate
from lbgen.generation.screening.counts import CategoryCounts


@pytest.mark.parametrize(
    "reasons, cause",
    [
        ({"balance": 7, "label": 2}, "balance"),
        ({"duplicate": 7}, "duplicate"),
        ({"balance": 2, "label": 7}, "label: the generator hardly draws it"),
        ({"blank": 7}, "blank: the generator hardly draws it"),
    ],
)
def test_the_most_frequent_reason_is_named_and_the_generator_blamed_only_for_its_drawing(reasons, cause):
    line = rejection_line("bottle", CategoryCounts(images=4, rejected=3, reasons=Counter(reasons)))
    assert line == f"75% of the first images of bottle were rejected, most often for {cause}"


@pytest.mark.parametrize("layout", ["imagefolder", "webdataset", "parquet"])
def test_nothing_that_readers_see_names_a_folder_of_this_machine(config, tmp_path, layout):
    """The models and the categories lie below tmp_path's parents; dataset.yaml, which a repair reads, may say where."""
    made = Path(generate(replace(config, output=tmp_path / "made", format=layout)).output)
    private = str(Path(config.generator).parent).encode()
    shown = {path for path in made.rglob("*") if path.is_file()} - {made / "dataset.yaml"}
    assert {made / "README.md", made / "croissant.json"} < shown
    assert [path.name for path in shown if private in path.read_bytes()] == []
    assert private.decode() not in str(index.read_index(made).to_pylist())
    assert f"generator: {Path(config.generator).name}" in (made / "README.md").read_text()

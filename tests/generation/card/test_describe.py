"""What is said of a dataset once it is whole."""

from collections import Counter

import pytest

from lbgen.generation.card.describe import rejection_line
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

"""How many edited copies the audit's search for near-duplicates finds, and how many different pictures it joins:
`python benchmarks/audit/near_duplicates.py`.

For every kind of pictures (benchmarks/audit/edited_pictures.py), the first column is the share of independently drawn
pictures that are called near-duplicates. Then, for every edit, a set has pictures and their edited copies: recall is
the share of copies that are joined with their original, precision the share of joined pairs that are such pairs.
"Before" is the search of the versions up to 2026-11: 8x8 pictures that differ by less than 0.015.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.audit.edited_pictures import EDITS, SETS, Picture
from benchmarks.measuring import flags_parser, heading, markdown
from lbgen.metrics.copies import duplicate_pictures, small_picture

Pairs = set[tuple[int, int]]


def pairs_today(pictures: list[Picture]) -> Pairs:
    """Every near-duplicate and its original."""
    small = (small_picture(images_of(pictures)) * 255).round().byte().numpy()
    original = duplicate_pictures([small], lambda rows: small[rows], np.zeros(len(small), np.int64)).original
    return {(int(first), row) for row, first in enumerate(original) if first != row}


def pairs_before(pictures: list[Picture]) -> Pairs:
    small = (F.interpolate(images_of(pictures), (8, 8), mode="area") * 255).round().flatten(1) / 255
    near = torch.cdist(small, small) / small.shape[1] ** 0.5 < 0.015
    return {(int(first), int(second)) for first, second in torch.nonzero(near.triu(1))}


def images_of(pictures: list[Picture]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def joined(pairs: Pairs, count: int) -> NDArray[np.bool_]:
    """(count,) pictures that are in some pair."""
    found = np.zeros(count, bool)
    found[[row for pair in pairs for row in pair]] = True
    return found


def line(kind: str, when: str, count: int) -> list[str]:
    find = {"today": pairs_today, "before": pairs_before}[when]
    pictures = SETS[kind](count, 0)
    cells = [kind, when, f"{joined(find(pictures), count).mean():.1%}"]
    for edit in EDITS.values():
        pairs = find([*pictures, *map(edit, pictures)])
        right = sum(second - first == count for first, second in pairs)
        cells.append(f"{right / count:.0%}, {right / len(pairs):.0%}" if pairs else "0%, –")
    return cells


def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("--pictures", type=int, default=300, help="of a set (default: 300)")
    count = parser.parse_args(argv).pictures
    print(heading())
    lines = [line(kind, when, count) for kind in tqdm(SETS, disable=None) for when in ("before", "today")]
    titles = ["pictures", "search", "joined without a copy", *(f"{name}: recall, precision" for name in EDITS)]
    print("\n" + markdown([titles, *lines]))


if __name__ == "__main__":
    main()

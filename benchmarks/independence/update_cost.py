"""How much longer an update is with the independence term: `python benchmarks/independence/update_cost.py`.

An update with the paper's terms and weights, the same with the independence term, and the first once more, which shows
by how much two measurements of the same update differ. The micro world's recipe by default; every flag of
`lbgen align` is accepted. The memory is full. Bank and memory hold noise, which varies in every direction, so that the
term keeps more directions than with images: an upper bound.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import flags_parser, heading, in_fresh_process, line, markdown, measured, parse_with
from benchmarks.updates import align_update, write_noise_bank
from lbgen.alignment.config import AlignConfig
from lbgen.configuration import recipes


def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("--recipe", default="microworld", help="settings of `lbgen align` (default: microworld)")
    parser.add_argument("--repeats", type=int, default=20, help="updates measured, after one that is not")
    arguments, given = parse_with(parser, AlignConfig, argv)
    config = recipes.resolve(AlignConfig, arguments.recipe, {**given, "logger": "none"})
    print(heading(), flush=True)
    print(markdown([["terms", "seconds, median", "longer by", "peak memory, GB"]]), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        paper = replace(config, output=f"{folder}/run", independence_weight=0.0)
        ours = replace(paper, independence_weight=1.0)
        in_fresh_process(write_noise_bank, ours)
        seconds = []
        for name, version in (("the paper's", paper), ("and independence", ours), ("the paper's, again", paper)):
            result = measured(arguments.repeats, align_update, version, True)
            seconds.append(result.seconds)
            longer, peak = f"{result.seconds / seconds[0] - 1:+.1%}", f"{result.peak / 1e9:.2f}"
            print(line([name, f"{result.seconds:.3f}", longer, peak]), flush=True)


if __name__ == "__main__":
    main()

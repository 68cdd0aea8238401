"""How many images the audit rightly and wrongly flags as dark, blurred or tiny:
`python benchmarks/audit/image_flags.py`.

Square crops of the photographs that come with scikit-learn: unchanged, underexposed (by a number of stops, in linear
light), blurred (standard deviation in percent of the side), and shrunk to a number of pixels. Each is resized to the
model's resolution, as in the audit. `--pictures FOLDER` adds other photographs or emoji; each folder is a kind of its
own, and transparent pixels are white. The flags `dark` and `blurred` use the thresholds of
src/lbgen/audit/findings/images.py. "Shrunk" is the share that is flagged as blurred: if it is small, an image of that
size is not tiny.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import flags_parser, heading, markdown
from lbgen.audit.findings.images import BLURRED, DARK
from lbgen.metrics.pixels import brightness, sharpness

STOPS, BLURS, SIDES = (0, 2, 4, 5, 6), (0, 1, 2, 4, 8), (32, 48, 64, 96)
CROPS = 12
"""Number of crops of each photograph; an image of fewer than SMALL pixels is used whole."""
SMALL, SMALLEST_CROP = 200, 0.35
GAMMA = 2.2

Edit = Callable[[Image.Image], Image.Image]


def exposed_less(stops: int) -> Edit:
    return lambda picture: Image.fromarray((np.array(picture) * 2 ** (-stops / GAMMA)).round().astype(np.uint8))


def blurred(percent: int) -> Edit:
    return lambda picture: picture.filter(ImageFilter.GaussianBlur(percent / 100 * picture.width))


def shrunk(side: int) -> Edit:
    return lambda picture: picture.resize((side, side), Image.Resampling.LANCZOS)


def crops(picture: Image.Image, rng: np.random.Generator) -> list[Image.Image]:
    if min(picture.size) < SMALL:
        return [picture]
    found = []
    for _ in range(CROPS):
        length = int(rng.uniform(SMALLEST_CROP, 1) * min(picture.size))
        left, top = (int(rng.integers(0, edge - length + 1)) for edge in picture.size)
        found.append(picture.crop((left, top, left + length, top + length)))
    return found


def opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        colours = picture.convert("RGBA")
    white = Image.new("RGBA", colours.size, "white")
    white.alpha_composite(colours)
    return white.convert("RGB")


def seen(pictures: list[Image.Image], side: int, edit: Edit) -> torch.Tensor:
    """(N, 3, side, side) in [0, 1]"""
    canvases = [np.array(edit(picture).resize((side, side), Image.Resampling.BICUBIC)) for picture in pictures]
    return torch.from_numpy(np.stack(canvases)).permute(0, 3, 1, 2).float() / 255


def share(flags: NDArray) -> str:
    return f"{flags.mean():.0%}"


def line(kind: str, pictures: list[Image.Image], side: int) -> list[str]:
    dark = [share(brightness(seen(pictures, side, exposed_less(stops))).numpy() < DARK) for stops in STOPS]
    edits = [*map(blurred, BLURS), *(shrunk(small) for small in SIDES if small < side)]
    blurs = [share(sharpness(seen(pictures, side, edit)).numpy() < BLURRED) for edit in edits]
    shrunk_too = blurs[len(BLURS) :] + ["–"] * (len(SIDES) - len(blurs) + len(BLURS))
    return [f"{kind}, {len(pictures)}", f"{side}", *map(", ".join, (dark, blurs[: len(BLURS)], shrunk_too))]


def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("--pictures", type=Path, nargs="*", default=[], help="folders of .png and .jpg files")
    parser.add_argument("--most", type=int, default=150, help="files of a folder (default: 150)")
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 224], help="the model's resolution")
    arguments = parser.parse_args(argv)
    print(heading())
    rng = np.random.default_rng(0)
    kinds = {"scikit-learn": [Image.fromarray(image) for image in load_sample_images().images]}
    for folder in arguments.pictures:
        files = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg"))
        kinds[folder.name] = [opened(files[row]) for row in rng.permutation(len(files))[: arguments.most]]
    lines = []
    for kind, pictures in kinds.items():
        cut = [crop for picture in pictures for crop in crops(picture, rng)]
        lines += [line(kind, cut, side) for side in arguments.sides]
    titles = ["pictures", "resolution", f"dark: {', '.join(map(str, STOPS))} stops", f"blurred: {BLURS}%"]
    print("\n" + markdown([[*titles, f"shrunk, blurred: {SIDES} pixels"], *lines]))


if __name__ == "__main__":
    main()

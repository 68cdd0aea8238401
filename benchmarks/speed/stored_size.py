"""Size of photographs on disk by file format and image size: `python benchmarks/speed/stored_size.py`.

The middle squares of the two photographs that come with scikit-learn (640x427, JPEG), as they are and brought to 256,
encoded as `lbgen generate` does by default, but without its metadata: an order of magnitude. `lbgen plan` measures a
generator's own images.
"""

import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_images

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import flags_parser, markdown
from lbgen.generation.config import GenerateConfig

QUALITY = {"quality": GenerateConfig.compression_quality}
OPTIONS = {"png": {}, "jpeg": {**QUALITY, "subsampling": 0}, "webp": QUALITY}
"""Pillow's options by format: jpeg keeps colours at full resolution."""
SIDE = 427
IMAGES = 1_300_000


def squares() -> list[Image.Image]:
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    lefts = [(photograph.width - SIDE) // 2 for photograph in photographs]
    return [image.crop((left, 0, left + SIDE, SIDE)) for image, left in zip(photographs, lefts, strict=True)]


def bytes_per_pixel(images: list[Image.Image], image_format: str) -> float:
    size = 0
    for image in images:
        stream = BytesIO()
        image.save(stream, image_format, **OPTIONS[image_format])
        size += len(stream.getvalue())
    return size / sum(image.width * image.height for image in images)


def main(argv: list[str] | None = None) -> None:
    flags_parser(__doc__).parse_args(argv)
    lines = [["format", "stored size", "bytes a pixel, measured", "kB an image", "1.3 M images, GB"]]
    originals = squares()
    small = [image.resize((256, 256), Image.Resampling.LANCZOS) for image in originals]
    for image_format in OPTIONS:
        for side, images in ((512, originals), (256, small)):
            measured = bytes_per_pixel(images, image_format)
            size = measured * side**2
            cells = [f"{measured:.2f}", f"{size / 1e3:.0f}", f"{size * IMAGES / 1e9:.0f}"]
            lines.append([image_format, str(side), *cells])
    print(markdown(lines))


if __name__ == "__main__":
    main()

"""Pictures of five kinds that are hard to tell apart, and the edits that make a near-duplicate, by PIL and numpy."""

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from lbgen.microworld.scenes import World, render

SIDE = 96

Picture = NDArray[np.uint8]
"""(96, 96, 3)"""


def filtered_noise(count: int, seed: int, response: Callable[[NDArray], NDArray]) -> list[NDArray]:
    """(96, 96, 3) noise of unit variance; `response` gives the amplitude at a frequency in cycles per pixel."""
    rng = np.random.default_rng(seed)
    frequencies = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE))[..., None]
    spectra = (np.fft.fft2(rng.normal(size=(SIDE, SIDE, 3)), axes=(0, 1)) for _ in range(count))
    pictures = (np.fft.ifft2(spectrum * response(frequencies), axes=(0, 1)).real for spectrum in spectra)
    return [picture / picture.std() for picture in pictures]


def levels(picture: NDArray) -> Picture:
    return (picture.clip(0, 1) * 255).round().astype(np.uint8)


def dark(count: int, seed: int) -> list[Picture]:
    """Pale, underexposed pictures with the spectrum of photographs and about 20 levels."""
    colours = filtered_noise(count, seed, lambda f: 1 / np.maximum(f, 1 / SIDE))
    return [levels(0.04 + 0.014 * (0.8 * colour[..., :1] + 0.2 * colour)) for colour in colours]


def textured(count: int, seed: int) -> list[Picture]:
    """One green texture of fine grain, placed at random."""
    grains = filtered_noise(count, seed, lambda f: np.exp(-(((f - 0.12) / 0.05) ** 2)))
    return [levels(np.array([0.3, 0.5, 0.2]) + 0.1 * grain[..., :1]) for grain in grains]


def noise(count: int, seed: int) -> list[Picture]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8) for _ in range(count)]


def sparse(count: int, seed: int) -> list[Picture]:
    """One small object of the micro world, somewhere on white."""
    rng = np.random.default_rng(seed)
    scenes, found = render(rng.integers(0, 12, count), seed, World(styles=("photo",))), []
    for image, mask in zip(scenes.images, scenes.masks, strict=True):
        picture, size = np.full((SIDE, SIDE, 3), 255, np.uint8), int(rng.integers(14, 30))
        object_, shape = (np.array(Image.fromarray(each).resize((size, size))) for each in (image, mask))
        top, left = rng.integers(8, SIDE - 8 - size, 2)
        picture[top : top + size, left : left + size][shape] = object_[shape]
        found.append(picture)
    return found


def photographs(count: int, seed: int) -> list[Picture]:
    """Photographs of the micro world: objects and backgrounds repeat, pictures do not."""
    images = render(np.random.default_rng(seed).integers(0, 12, count), seed, World(styles=("photo",))).images
    return [np.array(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for image in images]


SETS = {"photographs": photographs, "dark": dark, "sparse": sparse, "textured": textured, "noise": noise}


def cropped(picture: Picture) -> Picture:
    """The picture without 1% of the side at every edge, resized to its former size."""
    edge = 0.01 * SIDE
    box = (edge, edge, SIDE - edge, SIDE - edge)
    return np.array(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))


def recompressed(picture: Picture) -> Picture:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=75)
    return np.array(Image.open(stream))


def resized(picture: Picture) -> Picture:
    """The picture resized to six tenths of its side and back."""
    small = Image.fromarray(picture).resize((SIDE * 6 // 10,) * 2, Image.Resampling.BICUBIC)
    return np.array(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


EDITS: dict[str, Callable[[Picture], Picture]] = {
    "flip": lambda picture: np.array(ImageOps.mirror(Image.fromarray(picture))),
    "crop 2%": cropped,
    "brightness 5%": lambda picture: np.array(ImageEnhance.Brightness(Image.fromarray(picture)).enhance(1.05)),
    "JPEG": recompressed,
    "scale": resized,
}

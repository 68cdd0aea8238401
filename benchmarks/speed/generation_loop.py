"""Time of `lbgen generate` outside its networks: planning, noise, schedulers, encoding, hashing and writing."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from diffusers import UNet2DConditionModel
from diffusers.models.autoencoders.vae import Decoder
from transformers import CLIPTextModel

import lbgen
from benchmarks.measuring import markdown, now
from lbgen.generation.config import GenerateConfig
from lbgen.generation.workers import loading

STORED = (
    ("imagefolder", "png"),
    ("webdataset", "png"),
    ("parquet", "png"),
    ("webdataset", "jpeg"),
    ("webdataset", "webp"),
)
"""Formats of the dataset and of its images."""


@dataclass(frozen=True)
class LoopTime:
    images: int
    seconds: float
    """Wall time of the whole call, without loading the generator."""
    network: float
    """Seconds of it within the UNet, the decoder and the text encoder."""

    @property
    def own(self) -> float:
        """The loop's share of the wall time."""
        return 1 - self.network / self.seconds


class Stopwatch:
    """Adds up the time within the functions it is put around."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*inputs: Any, **options: Any) -> Any:
            began = now()
            try:
                return function(*inputs, **options)
            finally:
                self.seconds += now() - began

        return timed


def loop_time(config: GenerateConfig) -> LoopTime:
    """Make a dataset in a folder that is thrown away. The networks run eager, which can be timed from outside."""
    networks, weights = Stopwatch(), Stopwatch()
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        for network in (UNet2DConditionModel, Decoder, CLIPTextModel):
            stack.enter_context(patch.object(network, "forward", networks.around(network.forward)))
        stack.enter_context(patch.object(loading, "load_generator", weights.around(loading.load_generator)))
        began = now()
        made = lbgen.generate(replace(config, output=f"{folder}/made", compile=False))
        seconds = now() - began
    return LoopTime(made.images, seconds - weights.seconds, networks.seconds)


def stored_as(config: GenerateConfig) -> list[GenerateConfig]:
    """The configuration in every format of STORED."""
    return [replace(config, format=format, image_format=image_format) for format, image_format in STORED]


def table(times: dict[tuple[str, str], LoopTime]) -> str:
    """Markdown, one line a format."""
    lines = [["format", "images", "images/s", "the loop's share of the time"]]
    for (format, image_format), measured in times.items():
        speed = f"{measured.images / measured.seconds:.2f}"
        lines.append([f"{format}, {image_format}", str(measured.images), speed, f"{measured.own:.1%}"])
    return markdown(lines)

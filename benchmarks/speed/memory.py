"""Memory of an alignment update and of generation, counted: `python benchmarks/speed/memory.py`.

Stable Diffusion 1.5 and CLIP ViT-L/14 at full size, on tensors without data: nothing is computed, only the bytes are
counted that have to be held at once. The steps between the differentiated ones are left out, because they hold less.
Not counted: what CUDA, cuDNN and the allocator take beside, and compiled code.
"""

import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import flags_parser, markdown
from benchmarks.speed import full_size
from benchmarks.speed.full_size import Size
from lbgen.alignment.config import AlignConfig
from lbgen.configuration.recipes import resolve
from lbgen.models.families.family import Conditioning, Schedule
from lbgen.models.families.stable_diffusion import StableDiffusion
from lbgen.models.generator import Generator
from lbgen.models.guidance import Guidance
from lbgen.models.sampling import sample

DTYPE = torch.float16


class Additive(Schedule):
    """Every scheduler's step is a sum of latents and prediction; this one reads no numbers, of which there are none."""

    def step(self, prediction: Tensor, timestep: Tensor, latents: Tensor, rngs: Any = None) -> Tensor:
        return latents + prediction


class FullSize(StableDiffusion):
    """The family's own methods on networks without data. Texts are given as tensors."""

    def __init__(self, size: Size) -> None:
        self.name, self.device, self.dtype = "full size", torch.device("cpu"), DTYPE
        self.network = self.unet = full_size.unet(size).to(DTYPE)
        self.vae, self.text_encoders = full_size.autoencoder(size).to(DTYPE), {}
        self.default_size, self.token_limit = (8 * size.latents,) * 2, full_size.TOKENS

    def timesteps(self, steps: int, latent_shape: tuple[int, int, int]) -> Schedule:
        return Additive(torch.zeros(steps), 1.0, None)


def give_weights(*modules: nn.Module, device: torch.device | str = "cpu") -> None:
    """Give modules of the meta device weights of 0, without data in a FakeTensorMode; shared ones stay shared."""
    made: dict[int, Tensor] = {}

    def zeros(tensor: Tensor) -> Tensor:
        weights = torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
        return nn.Parameter(weights, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else weights

    for part in (each for module in modules for each in module.modules()):
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    if id(tensor) not in made:
                        made[id(tensor)] = zeros(tensor)
                    tensors[name] = made[id(tensor)]


def conditioning(images: int, size: Size) -> Conditioning:
    text = torch.zeros(images, full_size.TOKENS, size.text[0], dtype=DTYPE)
    return Conditioning({"text": text}, Conditioning({"text": text.clone()}))


class HeldBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: WeakSet[Any] = WeakSet()

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            self._seen.add(storage)
            self._change(storage.nbytes())
            weakref.finalize(storage, self._change, -storage.nbytes())

    def _change(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        tree_map_only(Tensor, self.add, result)
        return result


def counted(work: Callable[[], object], modules: Sequence[nn.Module]) -> tuple[float, float]:
    """(GB of the modules' weights, most GB held while `work` runs)."""
    held = HeldBytes()
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            held.add(tensor)
    weights = held.now
    with held:
        work()
    return weights / 1e9, held.peak / 1e9


def update_memory(config: AlignConfig, size: Size) -> tuple[float, float]:
    """An update of the adapter: sampling, CLIP's image features, backward, AdamW."""
    images, steps = config.batch_size, config.differentiated_steps
    with torch.device("meta"):
        generator = Generator(FullSize(size), Guidance(2.0), merged_sampler=config.merged_sampler)
        generator.add_adapter(config.rank, config.alpha, config.lora_targets)
        generator.refresh_sampler()
        clip = full_size.clip(full_size.letters(), size).to(DTYPE).requires_grad_(False)
    if config.gradient_checkpointing:
        generator.enable_gradient_checkpointing()
    modules = (*generator_modules(generator), clip)
    with FakeTensorMode(allow_non_fake_inputs=True):
        give_weights(*modules)
        optimizer = torch.optim.AdamW([parameter for _, parameter in generator.adapter_parameters()])
        texts, noise = conditioning(images, size), torch.zeros(images, 4, size.latents, size.latents)

        def update() -> None:
            pictures = sample(generator, texts, noise, steps=steps, differentiate_at=frozenset(range(steps)))
            pixels = F.interpolate(pictures, (size.image,) * 2, mode="bicubic", antialias=True)
            clip.get_image_features(pixels.to(DTYPE)).pooler_output.float().sum().backward()
            optimizer.step()

        return counted(update, modules)


@torch.no_grad()
def generation_memory(images: int, size: Size) -> tuple[float, float]:
    """A batch of generated images."""
    with torch.device("meta"):
        generator = Generator(FullSize(size), Guidance(2.0))
    modules = generator_modules(generator)
    with FakeTensorMode(allow_non_fake_inputs=True):
        give_weights(*modules)
        texts, noise = conditioning(images, size), torch.zeros(images, 4, size.latents, size.latents)
        return counted(lambda: sample(generator, texts, noise, steps=1), modules)


def generator_modules(generator: Generator) -> tuple[nn.Module, ...]:
    merged = (generator._merged.network,) if generator._merged else ()
    return (generator.family.network, *merged, generator.family.vae)


def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4], help="of an update (default: 1 4)")
    parser.add_argument(
        "--generated", type=int, nargs="+", default=[1, 32], help="of a generated batch (default: 1 32)"
    )
    parser.add_argument("--miniature", action="store_true", help="small networks of the same kinds")
    arguments = parser.parse_args(argv)
    size = full_size.MINIATURE if arguments.miniature else full_size.FULL
    paper = resolve(AlignConfig, "paper", {})
    lines = [["what", "images at once", "weights, GB", "most held, GB"]]
    for images, checkpointing in product(arguments.images, (True, False)):
        config = replace(paper, batch_size=images, gradient_checkpointing=checkpointing)
        what = f"align --recipe paper{'' if checkpointing else ' --no-gradient-checkpointing'}"
        lines.append([what, str(images), *(f"{gb:.2f}" for gb in update_memory(config, size))])
    for images in arguments.generated:
        lines.append(["generate", str(images), *(f"{gb:.2f}" for gb in generation_memory(images, size))])
    print(markdown(lines))


if __name__ == "__main__":
    main()

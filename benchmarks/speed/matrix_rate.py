"""The rate at which networks compute on a CPU, beside matrix products: `python benchmarks/speed/matrix_rate.py`.

A call of the UNet for one image with guidance and the decoding of one image, at the size of Stable Diffusion 1.5 with
random weights, and of 20 images of the micro world; fp32, eager, in both layouts of memory. lbgen uses the first one
for the UNet and the second one for the decoder. Rates are of one thread, by CPU seconds.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import flags_parser, heading, markdown
from benchmarks.speed import full_size
from lbgen.models.generator import load_generator

LAYOUTS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}


def cpu_seconds(call: Callable[[], object], repeats: int) -> float:
    """The median, after one call that does not count."""
    seconds = []
    for _ in range(1 + repeats):
        began = time.process_time()
        call()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds[1:])


def calls(size: full_size.Size, images: int) -> dict[str, tuple[nn.Module, Callable[[], object]]]:
    """What is measured -> the network whose layout matters, and a call of it."""
    torch.manual_seed(0)
    unet, vae = full_size.unet(size).eval(), full_size.autoencoder(size).eval()
    latents = torch.randn(2, 4, size.latents, size.latents)
    text = torch.randn(2, full_size.TOKENS, size.text[0])
    generator = load_generator("microworld")
    micro_unet, micro_vae = generator.family.network, generator.family.vae
    micro_latents = torch.randn(2 * images, *generator.latent_shape(*generator.default_size))
    micro_text = generator.encode(["cup"] * 2 * images).tensors["text"]
    timestep = torch.tensor(500)
    return {
        "UNet of SD 1.5, 1 image": (unet, lambda: unet(latents, timestep, text)),
        "decoder of SD 1.5, 1 image": (vae, lambda: vae.decode(latents[:1])),
        f"UNet of the micro world, {images} images": (
            micro_unet,
            lambda: micro_unet(micro_latents, timestep, micro_text),
        ),
        f"decoder of the micro world, {images} images": (micro_vae, lambda: micro_vae.decode(micro_latents[:images])),
    }


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="calls measured, after one that is not (default: 3)")
    parser.add_argument("--images", type=int, default=20, help="of the micro world at once (default: 20)")
    parser.add_argument("--miniature", action="store_true", help="small networks instead of those of SD 1.5")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)

    # The rate of matrix products.
    side = 256 if arguments.miniature else 4096
    left, right = torch.randn(2, side, side)
    rate = 2 * side**3 / cpu_seconds(lambda: left @ right, arguments.repeats)
    print(heading())
    print(f"matrix products of {side} x {side}: {rate / 1e9:.0f} GFLOP/s of one thread\n")

    # Those of the networks.
    lines = [["network", "layout", "CPU seconds a call", "GFLOP/s", "share of the products' rate"]]
    size = full_size.MINIATURE if arguments.miniature else full_size.FULL
    for name, (network, call) in calls(size, arguments.images).items():
        for layout, memory_format in LAYOUTS.items():
            network.to(memory_format=memory_format)
            with FlopCounterMode(display=False) as counter:
                call()
            seconds = cpu_seconds(call, arguments.repeats)
            reached = counter.get_total_flops() / seconds
            lines.append([name, layout, f"{seconds:.3g}", f"{reached / 1e9:.1f}", f"{reached / rate:.0%}"])
    print(markdown(lines))


if __name__ == "__main__":
    main()

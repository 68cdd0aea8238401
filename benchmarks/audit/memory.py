"""Peak memory and speed of `lbgen audit` as a dataset grows: `python benchmarks/audit/memory.py --images 10000 100000`.

Photographs of the micro world in WebDataset shards; every audit runs in its own process with an empty cache. The
features have 768 channels, as ViT-L/14's, so the memory is realistic. The network is a miniature, so the speed is that
of everything but the network. `--semantics microworld` uses a real one.
"""

import io
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPConfig, CLIPModel

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.commands import run_lbgen
from benchmarks.measuring import flags_parser, heading
from lbgen import microworld
from lbgen.microworld.scenes import World, render
from lbgen.microworld.world import CATEGORIES

SHARD = 2000


def write_shards(folder: Path, first: int, last: int) -> None:
    """The dataset's shards from image `first` up to `last`."""
    folder.mkdir(exist_ok=True)
    for start in range(first, last, SHARD):
        scenes = render(np.arange(start, min(start + SHARD, last)) % len(CATEGORIES), start, World(styles=("photo",)))
        with tarfile.open(folder / f"train-{start:07d}.tar", "w") as archive:
            for number, (image, category) in enumerate(zip(scenes.images, scenes.categories, strict=True), start):
                stream = io.BytesIO()
                Image.fromarray(image).save(stream, "JPEG", quality=90)
                for suffix, content in (("jpg", stream.getvalue()), ("cls", CATEGORIES[category].encode())):
                    member = tarfile.TarInfo(f"{number:07d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def write_miniature(folder: Path) -> str:
    """A CLIP of one narrow layer, with random weights, the micro world's words and features of 768."""
    tokenizer = AutoTokenizer.from_pretrained(microworld.SEMANTICS)
    narrow = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = {
        **narrow,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 12,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {**narrow, "image_size": 64, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=768)).save_pretrained(folder)
    for part in (tokenizer, AutoImageProcessor.from_pretrained(microworld.SEMANTICS)):
        part.save_pretrained(folder)
    return str(folder)


def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--semantics", help="a language space in place of the miniature")
    parser.add_argument("--workers", type=int, nargs="+", default=[1], help="processes that observe, in turn")
    arguments = parser.parse_args(argv)
    print(heading())
    with TemporaryDirectory() as folder:
        semantics, written = arguments.semantics or write_miniature(Path(folder) / "miniature"), 0
        for images in sorted(arguments.images):
            write_shards(Path(folder) / "data", written, images)
            written = images
            for workers in arguments.workers:
                output = f"{folder}/out-{images}-{workers}"
                flags = ["--semantics", semantics, "--output", output, "--workers", str(workers)]
                seconds, peak = run_lbgen("audit", f"{folder}/data", *flags)
                beside = f", {workers} workers" if len(arguments.workers) > 1 else ""
                print(f"{images} images{beside}: {peak / 1e6:.0f} MB, {images / seconds:.0f} images/s", flush=True)


if __name__ == "__main__":
    main()

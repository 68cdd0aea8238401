"""How fast an audit observes images by the number of its workers: `python benchmarks/audit/workers.py --workers 1 2 4`.

Parts of two photographs that come with scikit-learn, 500 x 375, JPEG, in WebDataset shards. The language space is the
micro world's, so everything but the network is measured. A single process reads the files and writes the cache,
whatever the number of workers: its CPU time per image limits the images per second that it can hand out.
"""

import io
import os
import sys
import tarfile
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import flags_parser, heading, line
from lbgen.audit.config import AuditConfig
from lbgen.audit.observe import observe
from lbgen.audit.workers.observer import Observer, canvas_side
from lbgen.audit.workers.pool import workers_of
from lbgen.audit.workers.row_cache import RowCache
from lbgen.datasets.open import open_dataset
from lbgen.models.semantics import load_semantics

WIDTH, HEIGHT = 500, 375


def write_shard(path: Path, images: int) -> None:
    """Two categories, a photograph each."""
    rng, photographs = np.random.default_rng(0), load_sample_images().images
    with tarfile.open(path, "w") as archive:
        for number in range(images):
            photograph = photographs[number % 2]
            top = rng.integers(photograph.shape[0] - HEIGHT)
            left = rng.integers(photograph.shape[1] - WIDTH)
            stream = io.BytesIO()
            part = photograph[top : top + HEIGHT, left : left + WIDTH]
            Image.fromarray(part).save(stream, "JPEG", quality=int(rng.integers(85, 96)))
            for suffix, content in (("jpg", stream.getvalue()), ("cls", str(number % 2).encode())):
                member = tarfile.TarInfo(f"{number:07d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args(argv)
    print(heading())
    space = load_semantics("microworld", torch.device("cpu"))
    observer = Observer(space, canvas_side(space))
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "set").mkdir()
        write_shard(folder / "set/train-00000.tar", arguments.images)
        size = (folder / "set/train-00000.tar").stat().st_size / arguments.images
        print(line(["workers", "images/s", "CPU ms an image in the reading process"]), line(["---"] * 3), sep="\n")
        for workers in arguments.workers:
            cache = RowCache(folder / str(workers), "", observer.fields())
            with workers_of(AuditConfig(semantics="microworld", workers=workers), observer) as pool:
                began, used = time.perf_counter(), time.process_time()
                seen = observe(open_dataset(folder / "set"), "set", pool, cache, 64)
                seconds, used = time.perf_counter() - began, time.process_time() - used
            cells = [str(workers), f"{len(seen.keys) / seconds:.0f}", f"{1e3 * used / len(seen.keys):.2f}"]
            print(line(cells), flush=True)
    print(f"\n{size / 1e3:.0f} kB an image; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

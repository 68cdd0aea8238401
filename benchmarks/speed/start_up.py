"""Start-up of lbgen: `python benchmarks/speed/start_up.py`.

First, `lbgen generate` on a finished dataset of 1.3 million images. Empty files stand for the descriptions and for the
1,300 index parts of finished shards: what is measured is how a run finds out that there is nothing to do.

Then, with `--first-call`, CPU seconds from the command to the first call of a network, for generate and align on the
micro world, in turn with what is part of them: `import torch` alone, and the classes of the micro world's networks,
imported from diffusers and transformers with Python's garbage collector off, so that this is a lower bound.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.commands import run_lbgen
from lbgen.configuration import saved
from lbgen.configuration.yaml_lines import yaml_text
from lbgen.generation import targets
from lbgen.generation.card.json_files import labels_json
from lbgen.generation.config import RUNNING, GenerateConfig
from lbgen.vocabulary.vocabulary import load_vocabulary


def write_finished_dataset(folder: Path) -> None:
    """A finished dataset without its images: 1,000 categories, 1,300 images each, 1,300 shards."""
    config = GenerateConfig(output=str(folder), batch_size=32)
    target = targets.target_of(load_vocabulary(config.vocabulary), config.images_per_category, config.split)
    values = {name: value for name, value in saved.plain(config).items() if name not in RUNNING}
    hashes = ("generator_sha256", "adapter_sha256", "semantics_sha256", "attributes_sha256")
    made_with = dict.fromkeys(hashes) | {"versions": []}
    (folder / "index").mkdir(parents=True)
    (folder / "dataset.yaml").write_text(yaml_text({"config": values, "made_with": made_with}))
    (folder / "plan.json").write_text(json.dumps(targets.to_json([target])))
    (folder / "labels.json").write_text(labels_json(target.categories))
    for name in ("README.md", "samples.png", "croissant.json"):
        (folder / name).touch()
    for shard in range(1300):
        (folder / f"index/train-{shard:05d}.parquet").touch()


FIRST_CALL = """
import os, resource, sys
from importlib.abc import MetaPathFinder

class Watch(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch.nn.utils":  # imported right after the modules of networks
            sys.meta_path.remove(self)
            from torch.nn.modules.module import register_module_forward_pre_hook
            register_module_forward_pre_hook(lambda network, inputs: end())

def end():
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(f"CPU {used.ru_utime + used.ru_stime}", flush=True)
    os._exit(0)

if sys.argv[1:] == ["networks"]:
    import gc
    gc.disable()
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel
    end()
if sys.argv[1:]:
    sys.meta_path.insert(0, Watch())
    from lbgen.cli import main
    main()
import torch
end()
"""
"""A program that runs lbgen with its arguments up to the first call of a network. Its argument `networks` imports only
the classes of the networks; without arguments, it imports torch."""
NETWORKS = ("networks",)
COMMANDS = {
    "import torch": (),
    "classes of the networks": NETWORKS,
    "generate": ("generate", "--generator", "microworld", "--vocabulary", "microworld", "--images-per-category", "2"),
    "align": ("align", "--recipe", "microworld"),
}


def first_call(arguments: Sequence[str], folder: str) -> float:
    """CPU seconds, user and system, of one thread."""
    output = ("--output", f"{folder}/out") if arguments not in ((), NETWORKS) else ()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FIRST_CALL, *arguments, *output]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return float(shown.rpartition("CPU ")[2])


def print_first_calls(repeats: int) -> None:
    """Medians of commands that take turns; each writes into a new folder."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(repeats):
        for name, arguments in COMMANDS.items():
            with TemporaryDirectory() as folder:
                seconds[name].append(first_call(arguments, folder))
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    for name, values in seconds.items():
        print(f"{name}: {statistics.median(values):.2f} CPU s, {min(values):.2f} to {max(values):.2f} (load {load})")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--first-call", action="store_true", help="measure the way to the first call of a network too")
    arguments = parser.parse_args(argv)
    repeats = arguments.repeats
    with TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_finished_dataset(data)
        results = [run_lbgen("generate", "--output", str(data)) for _ in range(repeats)]
    seconds, peak = (statistics.median(column) for column in zip(*results, strict=True))
    print(f"median of {repeats}: {seconds:.2f} s, {peak / 1e6:.0f} MB")
    if arguments.first_call:
        print_first_calls(repeats)


if __name__ == "__main__":
    main()

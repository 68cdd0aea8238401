"""CPU seconds of a program that makes a small dataset: `python benchmarks/speed/whole_run.py`.

`lbgen generate` imports, loads, draws, hashes, writes and describes; beside it a loop in the reference's way,
diffusers' pipeline for each category in turn and images saved as PNG one after the other. Both have a random adapter
and one thread, and take turns.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import heading, markdown
from benchmarks.speed.generate import write_adapter
from lbgen.models.registry import GENERATORS, resolve
from lbgen.vocabulary.vocabulary import load_vocabulary

LOOP = """
import sys
from pathlib import Path
from diffusers import DDIMScheduler, StableDiffusionPipeline

where, adapter, output, steps, count, *names = sys.argv[1:]
pipeline = StableDiffusionPipeline.from_pretrained(where, safety_checker=None)
pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
pipeline.load_lora_weights(adapter)
pipeline.set_progress_bar_config(disable=True)
for name in names:
    folder = Path(output, name)
    folder.mkdir(parents=True)
    images = pipeline([name] * int(count), num_inference_steps=int(steps), guidance_scale=2.0).images
    for index, image in enumerate(images):
        image.save(folder / f"{index:05d}.png")
"""
"""A program: folder of the generator, that of the adapter, output, steps, images of a category, names."""


def cpu_seconds(command: list[str]) -> float:
    """User and system, of the process and those that it waits for."""
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"exit code {process.returncode}: {' '.join(command)}")
    return usage.ru_utime + usage.ru_stime


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", default="microworld")
    parser.add_argument("--images-per-category", type=int, default=20, help="also the size of a batch (default: 20)")
    parser.add_argument("--steps", type=int, default=12, help="of DDIM (default: 12)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each, by turns (default: 5)")
    arguments = parser.parse_args(argv)
    count, steps = str(arguments.images_per_category), str(arguments.steps)
    names = load_vocabulary(arguments.vocabulary).names
    with TemporaryDirectory() as folder:
        adapter = f"{folder}/adapter"
        write_adapter("microworld", Path(adapter), rank=16)
        loop = [sys.executable, "-c", LOOP, resolve("microworld", GENERATORS), adapter, "OUTPUT", steps, count, *names]
        lbgen = [
            sys.executable, "-m", "lbgen", "generate", "--generator", "microworld", "--adapter", adapter,
            "--vocabulary", arguments.vocabulary, "--images-per-category", count, "--batch-size", count,
            "--scheduler", "ddim", "--steps", steps, "--quiet", "--output", "OUTPUT",
        ]  # fmt: skip
        programs = {"loop of plain diffusers": loop, "lbgen generate": lbgen}
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        for turn in range(arguments.repeats):
            for name, command in programs.items():
                seconds[name].append(
                    cpu_seconds([part.replace("OUTPUT", f"{folder}/{name} {turn}") for part in command])
                )
    print(heading())
    print(f"{len(names) * int(count)} images; load {os.getloadavg()[0]:.1f}\n")
    lines = [["program", "CPU seconds, median", "least", "most"]]
    lines += [[name, *(f"{f(own):.1f}" for f in (statistics.median, min, max))] for name, own in seconds.items()]
    print(markdown(lines))


if __name__ == "__main__":
    main()

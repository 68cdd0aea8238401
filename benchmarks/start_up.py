"""Start-up of `lbgen generate` on a finished dataset of 1.3 million images: `python benchmarks/start_up.py`.

1,300 empty files stand for the shards' marks: what is measured is how a run finds out that there is nothing to do.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from lbgen.configuration.saved import plain
from lbgen.configuration.yaml_lines import yaml_text
from lbgen.generation import plan as plans
from lbgen.generation.config import RUNNING, GenerateConfig
from lbgen.vocabulary.vocabulary import load_vocabulary


def pretend(folder: Path) -> None:
    """A finished dataset without its images: 1,000 categories, 1,300 images each, 1,300 shards."""
    config = GenerateConfig(output=str(folder), batch_size=32)
    target = plans.target_of(load_vocabulary(config.vocabulary), config.images_per_category, config.split)
    values = {name: value for name, value in plain(config).items() if name not in RUNNING}
    hashes = ("generator_sha256", "adapter_sha256", "semantics_sha256", "attributes_sha256")
    made_with = dict.fromkeys(hashes) | {"versions": []}
    (folder / "index").mkdir(parents=True)
    (folder / "dataset.yaml").write_text(yaml_text({"config": values, "made_with": made_with}))
    (folder / "plan.json").write_text(json.dumps(plans.to_json([target])))
    (folder / "croissant.json").write_text("{}")
    for shard in range(1300):
        (folder / f"index/train-{shard:05d}.parquet").touch()


def run(folder: Path) -> tuple[float, int]:
    """Seconds and peak bytes of one start."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "lbgen", "generate", "--output", str(folder)])
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return time.perf_counter() - began, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with TemporaryDirectory() as folder:
        pretend(Path(folder) / "data")
        results = [run(Path(folder) / "data") for _ in range(repeats)]
    seconds, peak = (statistics.median(column) for column in zip(*results, strict=True))
    print(f"median of {repeats}: {seconds:.2f} s, {peak / 1e6:.0f} MB")


if __name__ == "__main__":
    main()

"""Start-up of `lbgen generate` on a finished dataset of 1.3 million images: `python benchmarks/speed/start_up.py`.

Empty files stand for the descriptions and for the 1,300 index parts of finished shards: what is measured is how a run
finds out that there is nothing to do.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.commands import run_lbgen
from lbgen.configuration import saved
from lbgen.configuration.yaml_lines import yaml_text
from lbgen.generation import plan as plans
from lbgen.generation.card.json_files import labels_json
from lbgen.generation.config import RUNNING, GenerateConfig
from lbgen.vocabulary.vocabulary import load_vocabulary


def write_finished_dataset(folder: Path) -> None:
    """A finished dataset without its images: 1,000 categories, 1,300 images each, 1,300 shards."""
    config = GenerateConfig(output=str(folder), batch_size=32)
    target = plans.target_of(load_vocabulary(config.vocabulary), config.images_per_category, config.split)
    values = {name: value for name, value in saved.plain(config).items() if name not in RUNNING}
    hashes = ("generator_sha256", "adapter_sha256", "semantics_sha256", "attributes_sha256")
    made_with = dict.fromkeys(hashes) | {"versions": []}
    (folder / "index").mkdir(parents=True)
    (folder / "dataset.yaml").write_text(yaml_text({"config": values, "made_with": made_with}))
    (folder / "plan.json").write_text(json.dumps(plans.to_json([target])))
    (folder / "labels.json").write_text(labels_json(target.categories))
    for name in ("README.md", "samples.png", "croissant.json"):
        (folder / name).touch()
    for shard in range(1300):
        (folder / f"index/train-{shard:05d}.parquet").touch()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args(argv).repeats
    with TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_finished_dataset(data)
        results = [run_lbgen("generate", "--output", str(data)) for _ in range(repeats)]
    seconds, peak = (statistics.median(column) for column in zip(*results, strict=True))
    print(f"median of {repeats}: {seconds:.2f} s, {peak / 1e6:.0f} MB")


if __name__ == "__main__":
    main()

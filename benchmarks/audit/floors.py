"""The audit's figures if only the object predicts the label, and how often its intervals contain the true value:
`python benchmarks/audit/floors.py`.

Sets of 480 photographs of the micro world are audited with and without masks of their objects. The first table shows
the probes' mean accuracy, how often their interval begins above chance (nominally 2.5%), how strong the links of the
attributes are, and how often p is below 0.05. `--link colour` fixes that factor in every category.

`--localized` denoises each picture again from half of the noise with the micro world's generator, and audits the set
with the masks that `lbgen generate --localize` finds, with the masks of the renders, and without masks. The object
nearly keeps its position and colour, and the scene is not linked to the label.

The second part tests the intervals on sets drawn from known distributions: how often a probe's interval contains the
mean accuracy of such probes, and an attribute's interval the true strength. `--sets 0` prints only this part.

`--power SETS` prints instead how often a planted bias is found (benchmarks/audit/planted.py). Each seed has two sets
without a link and one in which a cue is linked to the label on nine in ten images; `--of` selects the pictures.
Each set is tested alone and against an unlinked set, as the page compares two datasets: one of the same objects, if
the pictures allow it, and one of other objects. Any mark on an unlinked set is false. "Accuracies" are the tests up to
2026-11: the interval of a probe's accuracy, and z-tests of two accuracies, adjusted over all figures.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.audit.planted import Planted, emoji, photographs, scenes
from benchmarks.audit.planted import write as write_planted
from benchmarks.measuring import flags_parser, heading, markdown
from benchmarks.microworld.localization import STORED, from_renders, planned_images, recorded
from lbgen.audit.config import AuditConfig
from lbgen.audit.findings.significance import differences, differences_together, probe_tests
from lbgen.audit.measures import CHANCE_FLOOR, PROBES, MeasuredDataset, measure
from lbgen.audit.observe import observe
from lbgen.audit.probes import probe
from lbgen.audit.workers.observer import Observer, canvas_side
from lbgen.audit.workers.pool import this_process
from lbgen.audit.workers.row_cache import RowCache
from lbgen.datasets.open import open_dataset
from lbgen.generation.config import GenerateConfig
from lbgen.generation.workers.loading import load_prepared_generator
from lbgen.metrics.information import Association, associate, mutual_information, normalized
from lbgen.metrics.intervals import WIDENING, Estimate, benjamini_hochberg, difference_p_value
from lbgen.microworld.scenes import World, render
from lbgen.microworld.world import CATEGORIES, FACTORS
from lbgen.models.localization.masks import segmented
from lbgen.models.registry import ATTRIBUTES
from lbgen.models.semantics import load_semantics
from lbgen.vocabulary.attributes import load_attributes

CHANCE = 1 / len(CATEGORIES)
PLACE, HUE, COLOUR = "the hidden square's place alone", "measured colour", "colour"
FEATURES = 96
"""Number of channels of the drawn features."""


def write(pictures: NDArray, categories: NDArray[np.int64], folder: Path) -> None:
    """FOLDER/<category>/<number>.png"""
    for number, (picture, category) in enumerate(zip(pictures, categories, strict=True)):
        path = folder / CATEGORIES[category] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, compress_level=1)


class Found(NamedTuple):
    """Figures of one audit, by the names of the probes and of the attributes."""

    probes: dict[str, Estimate]
    associations: dict[str, Association]


Kinds = dict[str, NDArray | None]
"""Kind of masks -> masks, (N, H, W) booleans."""


def rendered(images: int, seed: int, world: World) -> tuple[NDArray, NDArray[np.int64], Kinds]:
    """Pictures (N, H, W, 3), their categories and masks."""
    scenes = render(np.arange(images) % len(CATEGORIES), 1000 + seed, world)
    return scenes.images, scenes.categories, {"without masks": None, "with masks": scenes.masks}


def localized(images: int, seed: int, world: World) -> tuple[NDArray, NDArray[np.int64], Kinds]:
    pictures, categories, kinds = rendered(images, seed, world)
    config = GenerateConfig(vocabulary="microworld", generator="microworld", scheduler="ddim", steps=20, seed=seed)
    generator = load_prepared_generator(config, "cpu")
    renders = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    made = recorded(generator, config, planned_images(images), from_renders(generator, config, renders))
    numbers, _ = segmented(made.maps[*STORED, "yes"], made.pixels)
    kinds["with the masks of --localize"] = (numbers > 0).numpy()
    return made.pixels.permute(0, 2, 3, 1).numpy(), categories, kinds


def audited(
    sets: int, images: int, world: World, draw: Callable[[int, int, World], tuple[NDArray, NDArray, Kinds]]
) -> Iterator[dict[str, Found]]:
    """Every set by its kind of masks; the attributes are those that the space has learned and, in addition, colour."""
    space = load_semantics("microworld")
    attributes = load_attributes(ATTRIBUTES["microworld"])
    attributes += [attribute for attribute in load_attributes(None) if attribute.name == COLOUR]
    observer, config = Observer(space, canvas_side(space)), AuditConfig(permutations=199)
    for seed in tqdm(range(sets), unit=" sets", disable=None):
        pictures, categories, kinds = draw(images, seed, world)
        with TemporaryDirectory() as name:
            folder, found = Path(name), {}
            cache = RowCache(folder / "cache", "microworld", observer.fields())
            write(pictures, categories, folder / "set")
            for kind, masks in kinds.items():
                if masks is not None:
                    write(masks, categories, folder / "set/masks")
                observed = observe(
                    open_dataset(folder / "set"), "set", this_process(observer), cache, config.batch_size
                )
                found[kind] = found_in(measure(observed, space, attributes, config, 40, lambda step: None))
        yield found


class Marked(NamedTuple):
    """Names of the probes that are marked in one set or in the comparison of two sets."""

    accuracies: set[str]
    today: set[str]
    together: bool
    """Whether today's test of all probes together is significant."""


def alone(m: MeasuredDataset) -> Marked:
    above = {name for name in CHANCE_FLOOR if m.figures[f"probes.{name}"].low > m.chance}
    tests = probe_tests(m)
    today = {name for name in CHANCE_FLOOR if tests[name]["significant"]}
    return Marked(above, today, tests["together"]["significant"])


def apart(first: MeasuredDataset, second: MeasuredDataset) -> Marked:
    keys = [key for key in first.figures if key.startswith("probes.")]
    p_values = [difference_p_value(first.figures[key], second.figures[key]) for key in first.figures]
    by_accuracy = zip(first.figures, benjamini_hochberg(np.array(p_values)) < 0.05, strict=True)
    today = differences([first, second])[second.observed.name]
    return Marked(
        {key for key, found in by_accuracy if found and key in keys},
        {key for key in keys if today[key]["significant"]},
        differences_together([first, second])[second.observed.name]["significant"],
    )


def print_power(sets: int, images: int, link: float, draw: Callable[..., Planted], masks: bool) -> None:
    space = load_semantics("microworld")
    attributes = load_attributes(ATTRIBUTES["microworld"])
    observer, config = Observer(space, canvas_side(space)), AuditConfig(permutations=99)

    def measured(seed: int, number: int, home: float) -> MeasuredDataset:
        planted = draw(images, home, seed, 3 * seed + number)
        with TemporaryDirectory() as name:
            folder = write_planted(planted if masks else planted._replace(masks=None), Path(name) / "set")
            cache = RowCache(Path(name) / "cache", "microworld", observer.fields())
            observed = observe(
                open_dataset(folder), f"{number} {seed}", this_process(observer), cache, config.batch_size
            )
            return measure(observed, space, attributes, config, 40, lambda step: None)

    each = [[measured(seed, *set_) for set_ in enumerate((0.5, 0.5, link))] for seed in tqdm(range(sets), disable=None)]
    others = [(one, other) for one, other in product(range(sets), repeat=2) if one != other]
    rows = []
    for number, first, title in ((1, 0, "not linked"), (2, 2, f"{link:.0%} linked")):
        cases = {
            "one set": [alone(m) for of_seed in each for m in of_seed[first : number + 1]],
            "against the same objects": [apart(of_seed[0], of_seed[number]) for of_seed in each],
            "against other objects": [apart(each[one][0], each[other][number]) for one, other in others],
        }
        for test, found in cases.items():
            columns = [[case[place] for case in found] for place in range(2)]
            cells = [f"{share(map(bool, names))}, {np.mean([len(n) for n in names]):.1f}" for names in columns]
            rows.append([title, f"{test}, {len(found)}", *cells, share(case.together for case in found)])
    titles = ["pictures", "test", "accuracies: some row, rows", "today: some row, rows", "today: all probes together"]
    print_table(titles, rows)


def share(flags: Iterable[bool]) -> str:
    return f"{np.mean(list(flags)):.0%}"


def found_in(m: MeasuredDataset) -> Found:
    """The audit's figures, what the hidden square's place predicts, and the hue, also where there are no masks."""
    place = probe(m.observed.column("place", m.probed), m.observed.label[m.probed], 0)
    hue = associate(m.observed.label, m.observed.column("hue"), 199, 0)
    associations = {a.reading.name: a.association for a in m.attributes}
    return Found({name: m.figures[f"probes.{name}"] for name in PROBES} | {PLACE: place}, {HUE: hue} | associations)


def print_table(titles: list[str], rows: list[list[str]]) -> None:
    print(markdown([titles, *rows]), end="\n\n", flush=True)


def told(estimates: list[Estimate]) -> list[str]:
    average = np.mean([estimate.value for estimate in estimates])
    return [f"{average:.1%}", f"{np.mean([estimate.low > CHANCE for estimate in estimates]):.1%}"]


def linked(associations: list[Association]) -> list[str]:
    strength = np.mean([association.cramers_v.value for association in associations])
    return [f"{strength:.2f}", f"{np.mean([association.p_value < 0.05 for association in associations]):.0%}"]


def print_found(title: str, found: Sequence[Found]) -> None:
    print(f"{title}:\n")
    probes = {name: [one.probes[name] for one in found] for name in found[0].probes}
    print_table(
        ["probe", "labels told", "intervals above chance"],
        [[name, *told(estimates)] for name, estimates in probes.items()],
    )
    associations = {name: [one.associations[name] for one in found] for name in found[0].associations}
    print_table(
        ["attribute", "Cramér's V", "p < 0.05"],
        [[name, *linked(each)] for name, each in associations.items()],
    )


def share_held(estimates: list[Estimate], truth: float) -> str:
    return f"{np.mean([low <= truth <= high for _, low, high in estimates]):.0%}"


def drawn(images: int, spread: float, seed: int) -> tuple[NDArray, NDArray[np.int64]]:
    """Normal features around a mean for each category; `spread` scales the means."""
    rng, label = np.random.default_rng(seed), np.arange(images) % len(CATEGORIES)
    means = spread * np.random.default_rng(0).normal(size=(len(CATEGORIES), FEATURES))
    return means[label] + rng.normal(size=(images, FEATURES)), label


def probes_covered(images: int, spread: float, draws: int) -> list[str]:
    """How often the interval, widened and as the bootstrap gives it, contains the mean over all draws."""
    found = [probe(*drawn(images, spread, seed), seed) for seed in range(1, draws + 1)]
    truth = np.mean([estimate.value for estimate in found])
    alone = [Estimate(*(e.value + (end - e.value) / WIDENING for end in e)) for e in found]
    return [f"{images}", f"{truth:.0%}", share_held(alone, truth), share_held(found, truth)]


def links_covered(strength: float, images: int, draws: int) -> list[str]:
    """How often the interval contains the true value of the table that is drawn from.

    strength: the probability that an image has its category's own value; otherwise it has any of the six values.
        It is the true Cramér's V.
    """
    own = np.eye(6)[np.arange(len(CATEGORIES)) % 6]
    table = strength * own + (1 - strength) / 6
    information = float(normalized(mutual_information(table), table))
    label, found = np.arange(images) % len(CATEGORIES), []
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        value = np.where(rng.random(images) < strength, label % 6, rng.integers(0, 6, images))
        found.append(associate(label, value, permutations=99, seed=0))
    of_information, of_v = [one.normalized_mutual_information for one in found], [one.cramers_v for one in found]
    return [f"{strength:g}", share_held(of_information, information), share_held(of_v, strength)]


def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("--sets", type=int, default=30, help="number of audited sets (default: 30)")
    parser.add_argument("--images", type=int, default=480, help="images of a set (default: 480)")
    parser.add_argument("--draws", type=int, default=150, help="sets per line of the intervals (default: 150)")
    parser.add_argument("--link", choices=FACTORS, help="a factor that the category fixes")
    parser.add_argument("--localized", action="store_true", help="use masks from the generator's attention")
    parser.add_argument("--power", type=int, metavar="SETS", help="show how often a planted bias is found in SETS sets")
    parser.add_argument("--linked", type=float, default=0.9, help="share on the category's own backdrop (default: 0.9)")
    parser.add_argument("--of", choices=("scenes", "photographs", "emoji"), default="scenes", help="with --power")
    parser.add_argument("--emoji", type=Path, help="node_modules with emoji-datasource-google and -twitter")
    parser.add_argument("--no-masks", action="store_true", help="hide the masks of the objects, with --power")
    arguments = parser.parse_args(argv)
    print(heading())
    if arguments.power:
        draw = {"scenes": scenes, "photographs": photographs, "emoji": emoji}[arguments.of]
        draw = draw(arguments.emoji) if draw is emoji else draw
        print_power(arguments.power, arguments.images, arguments.linked, draw, not arguments.no_masks)
        return
    world = World(links={arguments.link: 1.0} if arguments.link else {}, styles=("photo",))
    if arguments.sets:
        draw = localized if arguments.localized else rendered
        found = [*audited(arguments.sets, arguments.images, world, draw)]
        for kind in reversed(found[0]):
            print_found(f"{arguments.sets} sets {kind}", [each[kind] for each in found])
    if not arguments.link and not arguments.localized:
        images, draws = arguments.images, arguments.draws
        sizes_and_spreads = product((images // 2, images), (0, 0.1, 0.2, 0.4))
        rows = [probes_covered(size, spread, draws) for size, spread in sizes_and_spreads]
        print_table(["images", "labels told", "bootstrap alone holds it", "interval holds it"], rows)
        titles = ["strength of the link", "information's interval holds it", "Cramér's V's does"]
        print_table(titles, [links_covered(strength, images, draws) for strength in (0, 0.25, 0.5, 0.75, 0.9)])


if __name__ == "__main__":
    main()

"""Lay out a dataset with boxes as detectors of other programs read it: Ultralytics' YOLO and Pascal VOC.

    python examples/yolo_and_voc.py DATASET OUTPUT

DATASET is the output of `lbgen generate --localize` in its default format. OUTPUT/yolo has data.yaml, images/ and
labels/; OUTPUT/voc has VOCdevkit/VOC2012 as torchvision's VOCDetection reads it, which looks for .jpg: generate with
`--image-format jpeg` for readers that go by the suffix. Images are links to those of DATASET.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import yaml

Entry = tuple[dict, list[dict]]
"""An image and its instances, in COCO's format."""


def entries(annotations: dict) -> list[Entry]:
    instances = defaultdict(list)
    for instance in annotations["annotations"]:
        instances[instance["image_id"]].append(instance)
    return [(image, instances[image["id"]]) for image in annotations["images"]]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def link(path: Path, image: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(image.resolve())


def yolo_lines(image: dict, instances: list[dict]) -> str:
    """<category, from 0> <x of the centre> <y> <width> <height>, as shares of the image's width and height."""
    width, height, lines = image["width"], image["height"], ""
    for instance in instances:
        x, y, w, h = instance["bbox"]
        shares = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
        lines += " ".join([str(instance["category_id"] - 1), *(f"{share:.6f}" for share in shares)]) + "\n"
    return lines


def voc_xml(name: str, image: dict, instances: list[dict], categories: dict[int, str]) -> str:
    """Corners are counted from 1, and belong to the box."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = name
    fill(ElementTree.SubElement(root, "size"), width=image["width"], height=image["height"], depth=3)
    for instance in instances:
        x, y, w, h = instance["bbox"]
        found = ElementTree.SubElement(root, "object")
        fill(found, name=categories[instance["category_id"]], truncated=0, difficult=0)
        fill(ElementTree.SubElement(found, "bndbox"), xmin=x + 1, ymin=y + 1, xmax=x + w, ymax=y + h)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def fill(element: ElementTree.Element, **values: object) -> None:
    for name, value in values.items():
        ElementTree.SubElement(element, name).text = str(value)


dataset, output = Path(sys.argv[1]), Path(sys.argv[2])
splits, voc, files = {}, output / "voc/VOCdevkit/VOC2012", sorted(dataset.glob("annotations/instances_*.json"))
if not files:
    sys.exit(f"{dataset}: no annotations/instances_*.json; generate with --localize, in the default format")
if output.exists():
    sys.exit(f"{output} is there already; choose another folder, or remove it")
for file in files:
    split, annotations = file.stem.removeprefix("instances_"), json.loads(file.read_text())
    categories = {each["id"]: each["name"] for each in annotations["categories"]}
    splits[split], keys = f"images/{split}", []
    for image, instances in entries(annotations):
        place = Path(image["file_name"])
        if len(place.parts) != 3 or place.parts[0] != split or ".." in place.parts:
            sys.exit(
                f'{file}: file_name "{place}" is not {split}/<category>/<key>.<suffix>; generate in the default format'
            )
        source, name = dataset / place, place.relative_to(split)
        link(output / "yolo/images" / split / name, source)
        write(output / "yolo/labels" / split / f"{name.with_suffix('')}.txt", yolo_lines(image, instances))
        keys.append(f"{split}_{source.stem}")
        link(voc / "JPEGImages" / f"{keys[-1]}.jpg", source)
        write(voc / "Annotations" / f"{keys[-1]}.xml", voc_xml(f"{keys[-1]}.jpg", image, instances, categories))
    write(voc / "ImageSets/Main" / f"{split}.txt", "".join(f"{key}\n" for key in keys))
names = {number - 1: name for number, name in categories.items()}
write(output / "yolo/data.yaml", yaml.safe_dump({"path": str((output / "yolo").resolve()), **splits, "names": names}))
print(f"{sum(1 for _ in voc.glob('Annotations/*'))} images in {output / 'yolo'} and {output / 'voc'}")

"""Several categories in an image: what is planned, its masks in every layout, read back by pycocotools and datasets."""

import json
import shutil
import tarfile
import zlib
from collections import Counter
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from folders import reindexed
from miniatures import write_z_image
from PIL import Image
from stopped_runs import generate_with_a_stop

from lbgen.datasets import index
from lbgen.datasets.open import open_dataset
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import OtherCategory, Plan, PlannedImage, joined_names, other_indices
from lbgen.generation.render import Renderer, name_spans, prompt_of
from lbgen.generation.run import generate, plan_dataset
from lbgen.generation.targets import Target
from lbgen.generation.verify import verify
from lbgen.generation.workers.encode import decode_mask, encode_mask
from lbgen.models.generator import load_generator
from lbgen.models.localization import masks
from lbgen.models.localization.masks import segmented
from lbgen.models.noise import stacked_noise
from lbgen.models.sampling import render_images
from lbgen.runs.storage import open_store
from lbgen.vocabulary.vocabulary import Category

LAYOUTS = ("imagefolder", "webdataset", "parquet")


@pytest.fixture(scope="module", autouse=True)
def least_contrast():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "LEAST_CONTRAST", 0.05)  # images of random weights have about twice as much
        yield


@pytest.fixture(scope="module")
def made(config, tmp_path_factory) -> dict[str, GenerateConfig]:
    """By layout, 12 images of two categories each."""
    folder, found = tmp_path_factory.mktemp("composed"), {}
    for layout in LAYOUTS:
        found[layout] = replace(config, output=str(folder / layout), format=layout, localize=True, compose=2)
        generate(found[layout])
    return found


@pytest.fixture
def copies(made, tmp_path) -> dict[str, Path]:
    return {layout: Path(shutil.copytree(each.output, tmp_path / layout)) for layout, each in made.items()}


def rows_of(folder: str | Path) -> list[dict]:
    return index.read_index(folder).to_pylist()


def stored_masks(folder: str | Path) -> dict[str, np.ndarray]:
    """By key, as the audit's reader finds them."""
    records = open_dataset(Path(folder)).records()
    return {Path(each.key).stem: np.asarray(Image.open(BytesIO(each.mask or b""))) for each in records}


# ---- the plan ----


def test_others_are_drawn_uniformly_and_once():
    drawn = [other_indices(5, 2, 3, (7, "train", "x", number)) for number in range(3000)]
    assert all(len({2, *each}) == 4 and max(each) < 5 for each in drawn)
    orders = Counter(map(tuple, drawn))
    assert len(orders) == 4 * 3 * 2 and all(abs(count - 125) < 5 * 125**0.5 for count in orders.values())
    assert drawn == [other_indices(5, 2, 3, (7, "train", "x", number)) for number in range(3000)]
    assert drawn != [other_indices(5, 2, 3, (8, "train", "x", number)) for number in range(3000)]


def test_images_of_another_growth_keep_their_others():
    """A larger vocabulary adds categories to new images alone, with the labels that they have in the dataset."""
    letters = [Category(letter, letter, "") for letter in "abcde"]
    first = Target("train", 4, tuple(letters[:3]))
    small = Plan((first,), 0, 100, compose=2)
    grown = Plan((first, Target("train", 6, tuple(letters[::-1]))), 0, 100, compose=2)
    assert grown.shard("train", 0) == small.shard("train", 0)
    for image in grown.shard("train", 1):
        (other,) = image.others
        assert other.name == grown.categories[other.label].name != image.category.name


def test_a_prompt_names_them_all(config):
    image = PlannedImage(Category("a", "cup", ""), 0, 0, others=(OtherCategory(2, "red fox"), OtherCategory(1, "dog")))
    templated = replace(config, prompt_template="a {name}, {name}", localize=True, compose=3)
    prompt = prompt_of(image, templated)
    assert prompt == "a cup, red fox and dog, cup, red fox and dog"
    assert [prompt[begin:end] for begin, end in name_spans(image, templated)] == ["cup", "red fox", "dog"] * 2
    assert joined_names(["a"]) == "a" and joined_names(["a", "b"]) == "a and b"


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"compose": 2, "localize": False}, "--compose 2: add --localize"),
        ({"compose": 2, "steps": 4, "deep_cache_interval": 2}, "--deep-cache-interval 2: give 1"),
        ({"compose": 0}, "--compose 0: give 1 to 8"),
        ({"compose": 4}, "--compose 4: the vocabulary has 3 categories; give a smaller number"),
        ({"compose": 2, "prompt_template": "photo " * 9 + "{name}"}, "is .* tokens long.*give a smaller --compose"),
    ],
)
def test_refusals(config, tmp_path, changes, says):
    output = tmp_path / "refused"
    with pytest.raises(UserError, match=says):
        generate(replace(config, **{"localize": True, "output": str(output), **changes}))
    assert not output.exists()


# ---- what is stored ----


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_what_the_index_describes(made, layout):
    found, rows = stored_masks(made[layout].output), rows_of(made[layout].output)
    labels = json.loads(Path(made[layout].output, "labels.json").read_text())
    assert len(rows) == 12 and sum(bool(row["box"]) for row in rows) > 3
    assert sum(any(row["other_boxes"]) for row in rows) > 3
    for row in rows:
        (other,), (score,), box = row["other_labels"], row["other_scores"], row["other_boxes"]
        assert other != row["label"]
        assert row["prompt"].endswith(f"{row['name']} and {labels[other]['name']}")
        mask = found[row["key"]]
        assert mask.shape == (32, 32) and set(np.unique(mask)) <= {0, 254, 255}
        for value, given, its_score in ((255, row["box"], row["mask_score"]), (254, box, score)):
            y, x = np.nonzero(mask == value)
            expected = [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1] if len(x) else None
            assert (given or None) == expected or (given == [0] * 4 and expected is None)
            assert 0 <= its_score <= 1 and (expected is not None or its_score == 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pycocotools_reads_an_instance_of_each(made, layout):
    from pycocotools.coco import COCO

    rows, stored = {row["key"]: row for row in rows_of(made[layout].output)}, stored_masks(made[layout].output)
    coco = COCO(str(Path(made[layout].output, "annotations/instances_train.json")))
    assert len(coco.imgs) == 12 and len(coco.anns) == len({each["id"] for each in coco.anns.values()}) > 12
    for number, image in coco.imgs.items():
        key = Path(image["file_name"]).stem
        row, mask = rows[key], stored[key]
        parts = {row["label"] + 1: mask == 255, row["other_labels"][0] + 1: mask == 254}
        instances = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
        assert {each["category_id"] for each in instances} == {label for label, part in parts.items() if part.any()}
        for each in instances:
            assert (coco.annToMask(each) == parts[each["category_id"]]).all()
            is_own = each["category_id"] == row["label"] + 1
            assert each["score"] == (row["mask_score"] if is_own else row["other_scores"][0])


def test_datasets_shows_an_object_of_each(made, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = datasets.load_dataset(made["parquet"].output, cache_dir=str(tmp_path / "cache"), split="train")
    for line, row in zip(loaded, rows_of(made["parquet"].output), strict=True):
        found = [(row["label"], row["box"] or []), (row["other_labels"][0], row["other_boxes"])]
        expected = [(label, box) for label, box in found if any(box)]
        assert [*zip(line["objects"]["categories"], line["objects"]["bbox"], strict=True)] == expected


@pytest.mark.parametrize("layout", ["webdataset", "imagefolder"])
def test_the_card_describes_the_columns(made, layout):
    import mlcroissant

    dataset = mlcroissant.Dataset(str(Path(made[layout].output, "croissant.json")))
    (record,) = [each for each in dataset.metadata.record_sets if each.id == "image-index"]
    assert {"other_labels", "other_scores", "other_boxes"} <= {field.name for field in record.fields}
    assert "Each image was asked to show 2 categories" in Path(made[layout].output, "README.md").read_text()
    assert not verify(made[layout].output).damaged


# ---- verify, repair, growth ----


def test_verify_compares_whose_pixel_it_is(copies):
    """A mask with its two objects exchanged, and its hash with it."""
    folder = copies["imagefolder"]
    path = max((folder / "masks").rglob("*.png"), key=lambda path: len(np.unique(Image.open(path))))
    pixels, before = np.array(Image.open(path)), path.read_bytes()
    assert {254, 255} <= {*np.unique(pixels)}
    for changed in (
        np.where(pixels == 255, 254, np.where(pixels == 254, 255, 0)),
        np.where(pixels == 255, 253, pixels),
    ):
        Image.fromarray(changed.astype(np.uint8)).save(path)
        reindexed(folder, before, path.read_bytes())
        assert verify(folder).damaged
        reindexed(folder, path.read_bytes(), before)
    assert not verify(folder, repair=True).damaged
    assert path.read_bytes() == before


@pytest.mark.parametrize("column", ["other_labels", "other_scores", "other_boxes"])
def test_verify_compares_the_columns(copies, column):
    import pyarrow.parquet as pq

    path = copies["imagefolder"] / "index/train-00001.parquet"
    table = pq.read_table(path)
    for change in (lambda values: values[:-1], lambda values: [value + 1 for value in values]):
        rows = table.to_pylist()
        rows[0][column] = change(rows[0][column])
        pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
        assert verify(copies["imagefolder"]).damaged, column


def test_a_grown_dataset_is_whole(made, copies):
    grown = replace(made["webdataset"], output=str(copies["webdataset"]), images_per_category=5)
    generate(grown)
    assert not verify(grown.output).damaged
    with pytest.raises(UserError, match="was made with compose 2"):
        generate(replace(grown, compose=1))


def test_a_grown_vocabulary_changes_no_image_that_is_there(made, copies, tmp_path):
    (tmp_path / "names.txt").write_text("z1 cat\na2 dog\nm3 red fox\nb4 cup\n")
    grown = replace(made["parquet"], output=str(copies["parquet"]), vocabulary=str(tmp_path / "names.txt"))
    generate(replace(grown, images_per_category=5))
    assert not verify(grown.output).damaged
    before = {row["key"]: row for row in rows_of(made["parquet"].output)}
    now = {row["key"]: row for row in rows_of(grown.output)}
    assert len(now) == 20 and {key: now[key] for key in before} == before
    assert any(3 in row["other_labels"] for row in now.values())


def test_three_categories_balanced_values_and_two_splits(made, tmp_path):
    """The third has 253 in masks, boxes of two others are eight numbers, and a prompt names the value once."""
    (tmp_path / "attributes.yaml").write_text('place:\n  template: "{name} on {value}"\n  values: [s, t]\n')
    (tmp_path / "names.txt").write_text("z1 q\na2 w\nm3 e\n")  # the miniature reads 16 letters
    balanced = replace(
        made["webdataset"], output=str(tmp_path / "three"), compose=3, balance=("place",), max_attempts=1,
        attributes=Path(tmp_path, "attributes.yaml"), screen_semantics="microworld",
        balance_template="{name} on {value}", vocabulary=str(tmp_path / "names.txt"),
    )  # fmt: skip
    generate(balanced)
    generate(replace(balanced, split="val", images_per_category=1))
    assert not verify(balanced.output, attributes=balanced.attributes).damaged
    found, rows = stored_masks(balanced.output), rows_of(balanced.output)
    assert len(rows) == 15 and {*np.unique(np.stack([*found.values()]))} == {0, 253, 254, 255}
    for row in rows:
        assert len({row["label"], *row["other_labels"]}) == 3 and len(row["other_boxes"]) == 8
        assert row["prompt"].count(f" on {row['target'][0]}") == 1 and " and " in row["prompt"]


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_a_damaged_container_is_repaired(copies, layout):
    (shard,) = list(copies[layout].glob("*train-00001.tar")) or list(copies[layout].glob("data/train-00001.parquet"))
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    assert verify(copies[layout]).damaged
    assert not verify(copies[layout], repair=True).damaged
    assert shard.read_bytes() == content


def test_objects_of_a_received_table_are_compared(copies):
    """Other categories in its column, and a list of names that ends before another label; the hash with them."""
    import pyarrow.parquet as pq

    path = copies["parquet"] / "data/train-00000.parquet"
    table, content = pq.read_table(path), path.read_bytes()
    rows = table.to_pylist()
    place = next(number for number, row in enumerate(rows) if len(row["objects"]["categories"]) == 2)
    rows[place]["objects"]["categories"].reverse()
    described = json.loads(table.schema.metadata[b"huggingface"])
    described["info"]["features"]["label"]["names"].pop()
    described["info"]["features"]["objects"]["categories"]["feature"]["names"].pop()
    fewer = table.replace_schema_metadata({b"huggingface": json.dumps(described).encode()})
    for changed in (pa.Table.from_pylist(rows, table.schema), fewer):
        pq.write_table(changed, path)
        reindexed(copies["parquet"], content, path.read_bytes())
        assert verify(copies["parquet"]).damaged
        reindexed(copies["parquet"], path.read_bytes(), content)
        path.write_bytes(content)
    assert not verify(copies["parquet"]).damaged


def with_chunk(content: bytes, kind: bytes, data: bytes) -> bytes:
    """A PNG with another chunk behind its header."""
    chunk = len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    return content[:33] + chunk + content[33:]


def animated(content: bytes) -> bytes:
    stream = BytesIO()
    with Image.open(BytesIO(content)) as image:
        image.save(stream, "png", save_all=True, append_images=[Image.new("L", image.size)], default_image=True)
    return stream.getvalue()


UPRIGHT = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"
"""An EXIF block that says: turned by 180 degrees."""


@pytest.mark.parametrize("what", ["mask", "image"])
@pytest.mark.parametrize(
    "change",
    [
        lambda content: with_chunk(content, b"eXIf", UPRIGHT),
        lambda content: with_chunk(content, b"tRNS", b"\0\xff" if content[25] == 0 else b"\0\xff" * 3),
        animated,
        lambda content: content + content,
        lambda content: content[:-12],
    ],
    ids=["turned", "transparent", "animated", "twice", "without its end"],
)
def test_a_png_that_readers_show_differently_is_damage(copies, what, change):
    folder = copies["imagefolder"]
    path = max((folder / ("masks" if what == "mask" else "train")).rglob("*.png"))
    before = path.read_bytes()
    path.write_bytes(change(before))
    reindexed(folder, before, path.read_bytes())
    assert any("missing or changed" in line for line in verify(folder).damaged)


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row.update(objects=None),
        lambda row: row["image"].update(path=row["image"]["path"].replace(".png", ".exe")),
        lambda row: row["mask"].update(path="../../../etc/passwd"),
        lambda row: row["mask"].update(path=None),
    ],
    ids=["objects", "image.path", "mask.path", "no mask.path"],
)
def test_every_cell_of_a_received_table_is_compared(copies, change):
    import pyarrow.parquet as pq

    path = copies["parquet"] / "data/train-00000.parquet"
    table, before = pq.read_table(path), path.read_bytes()
    rows = table.to_pylist()
    change(rows[0])
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    reindexed(copies["parquet"], before, path.read_bytes())
    assert verify(copies["parquet"]).damaged


def renamed(members: dict[str, bytes], old: str, new: str) -> dict[str, bytes]:
    return {name.replace(old, new) if name.endswith(old) else name: content for name, content in members.items()}


def edited(members: dict[str, bytes], **values: object) -> dict[str, bytes]:
    """The first row of the index beside an image with other values."""
    name = next(name for name in members if name.endswith(".json"))
    return members | {name: json.dumps(json.loads(members[name]) | values).encode()}


@pytest.mark.parametrize(
    "change",
    [
        lambda members: renamed(members, ".png", ".bmp"),
        lambda members: members | {name: b" 0\n" for name in members if name.endswith(".cls")},
        lambda members: edited(members, duplicate_cosine="<script>"),
        lambda members: edited(members, seed=7.0),
        lambda members: members | {"x": None},
    ],
    ids=["suffix", "label", "score", "type", "link"],
)
def test_every_member_of_a_received_archive_is_compared(copies, change):
    path = copies["webdataset"] / "train-00000.tar"
    before = path.read_bytes()
    with tarfile.open(path) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}
    with tarfile.open(path, "w") as archive:
        for name, content in change(members).items():
            member = tarfile.TarInfo(name)
            member.size = len(content or b"")
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/tmp"
            archive.addfile(member, BytesIO(content or b""))
    reindexed(copies["webdataset"], before, path.read_bytes())
    assert verify(copies["webdataset"]).damaged


def test_an_empty_shard_has_the_columns_of_the_others(made, tmp_path, monkeypatch):
    """All images of it left out; `datasets` reads the parts of the index together."""
    monkeypatch.setattr(masks, "LEAST_CONTRAST", 2.0)
    empty = replace(
        made["webdataset"], output=str(tmp_path / "e"), screen=("mask",), max_attempts=1, last_resort="drop"
    )
    generate(empty)
    assert index.read_parquet(Path(empty.output, "index/train-00000.parquet")).schema.equals(index.COMPOSED_SCHEMA)
    assert not verify(empty.output).damaged


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"train": [], "val": []}, "'val': not a split of the plan"),
        ({"train": [{"0": {"KEY": 1}}]}, "lists KEY, which was not drawn again"),
    ],
)
def test_rounds_of_what_is_not_there_are_named(made, tmp_path, content, says):
    screened = replace(made["imagefolder"], output=str(tmp_path / "d"), screen=("duplicate",), duplicate_bits=0,
                       screen_semantics="microworld")  # fmt: skip
    generate(screened)
    key = rows_of(screened.output)[0]["key"]
    Path(screened.output, "duplicates.json").write_text(json.dumps(content).replace("KEY", key))
    try:
        (found,) = verify(screened.output).damaged
    except UserError as error:
        found = str(error)
    assert says.replace("KEY", key) in found


def test_a_wrong_value_of_the_record_names_the_file(copies):
    path = copies["imagefolder"] / "dataset.yaml"
    path.write_text(path.read_text().replace("compose: 2", "compose: 0"))
    with pytest.raises(UserError, match="dataset.yaml: --compose 0: give 1 to 8; restore the file"):
        verify(copies["imagefolder"])


def test_large_text_encoders_keep_the_prompts_of_one_shard(config, tmp_path):
    """Of a family that keeps prompts: images equal those of a run in one shard, and earlier prompts are forgotten."""
    folder = write_z_image(tmp_path / "z-image")
    composed = replace(
        config, generator=str(folder), scheduler="native", localize=True, compose=2, size=(32, 32), shard_size=4,
        output=str(tmp_path / "o"),
    )  # fmt: skip
    generate(composed)
    assert not verify(composed.output).damaged
    generator = load_generator(str(folder))
    renderer, plan = Renderer(generator, composed), plan_dataset(composed, open_store(composed.output))[0]
    for shard in range(2):
        renderer.prepare(plan.shard("train", shard))
    kept = {text for image in plan.shard("train", 1) for text in (prompt_of(image, composed), *image.names)}
    assert {*generator._prompts._kept} - {""} == kept


def test_a_run_stopped_in_a_shard_ends_with_the_same_index(made, tmp_path):
    whole = made["imagefolder"]
    again = replace(whole, output=str(tmp_path / "again"))
    generate_with_a_stop(again)
    assert rows_of(again.output) == rows_of(whole.output)


def test_the_mask_check_asks_for_every_category(made, config, tmp_path, monkeypatch):
    monkeypatch.setattr(masks, "LEAST_CONTRAST", 0.0985)
    screened = replace(made["imagefolder"], output=str(tmp_path / "s"), screen=("mask",), max_attempts=2)
    generate(screened)
    rows = rows_of(screened.output)
    assert {len(row["rejections"]) for row in rows} > {0}
    for row in rows:
        assert (len(row["rejections"]) == 2) == (row["box"] is None or not any(row["other_boxes"]))
    assert not verify(screened.output).damaged


# ---- whose the pixels are ----


@torch.no_grad()
def test_parts_are_what_each_name_changes(tiny_generator, config):
    """Predictions for the prompt and for what is left of it, computed apart, on the trajectory of a plain run."""
    composed = replace(config, localize=True, compose=2, steps=4)
    fox = OtherCategory(2, "red fox")
    batch = [PlannedImage(Category("z1", "cat", ""), 0, number, others=(fox,)) for number in range(2)]
    renderer = Renderer(tiny_generator, composed)
    prompts = [prompt_of(image, composed) for image in batch]
    recorder = renderer._recorder(batch, prompts)
    keys = [("z1", 0, 0), ("z1", 1, 0)]
    with recorder.attached(tiny_generator):
        seen = render_images(tiny_generator, keys, prompts, seed=0, steps=4)
    assert torch.equal(seen, render_images(tiny_generator, keys, prompts, seed=0, steps=4))
    family, expected = tiny_generator.family, 0
    shape = tiny_generator.latent_shape(*tiny_generator.default_size)
    latents, schedule = stacked_noise(0, keys, shape)[0], tiny_generator.timesteps(4, shape)
    for number, timestep in enumerate(schedule.timesteps):
        scaled = schedule.scaled(latents, timestep)
        texts = (prompts, ["red fox"] * 2, ["cat"] * 2, ["", ""])
        whole, *left, empty = (family.predict(family.network, scaled, timestep, family.encode(each)) for each in texts)
        squares = torch.stack([(whole - each).square().sum(dim=1) for each in left], dim=1)
        if number >= 2:  # of the second half, the first, the middle and the last: rounded, 2, 2 and 3
            expected += squares / squares.mean(dim=(1, 2, 3), keepdim=True)
        latents = schedule.step(tiny_generator.guidance.combine(empty, whole), timestep, latents)
    torch.testing.assert_close(recorder.parts(), expected, rtol=1e-3, atol=1e-5)


def test_each_half_belongs_to_the_name_that_changes_it():
    """Two squares on grey; leaving one name out changes the left square, the other the right one twice as much."""
    pixels = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)
    pixels[:, 0, 16:48, 8:28], pixels[:, 2, 16:48, 36:56] = 255, 255
    left, right = torch.zeros(16, 16), torch.zeros(16, 16)
    left[4:12, 2:7], right[4:12, 9:14] = 1, 1
    coarse, parts = (left + right)[None] + 0.01, torch.stack([left + 0.1, 2 * right + 0.1])[None]
    numbers, scores = segmented(coarse, pixels, parts=parts)
    assert (numbers[0, 20:44, 10:26] == 1).all() and (numbers[0, 20:44, 38:54] == 2).all()
    assert not numbers[0, :10].any() and scores.shape == (1, 2) and scores.min() > 0.8
    swapped, _ = segmented(coarse, pixels, parts=parts[:, [1, 0]])
    assert torch.equal(swapped == 2, numbers == 1) and torch.equal(swapped == 1, numbers == 2)
    single, _ = segmented(coarse, pixels)
    assert torch.equal(single > 0, numbers > 0)


def test_a_mask_keeps_its_numbers():
    numbers = np.array([[0, 1, 2], [8, 0, 1]])
    assert (decode_mask(encode_mask(numbers), (2, 3)) == numbers).all()
    assert (np.asarray(Image.open(BytesIO(encode_mask(numbers)))) == [[0, 255, 254], [248, 0, 255]]).all()

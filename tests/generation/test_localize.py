"""Masks and boxes of --localize, read by pycocotools, datasets and webdataset; the images stay as they were."""

import json
import shutil
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers.models.attention_processor import Attention
from PIL import Image
from stopped_runs import generate_with_a_stop

from lbgen.datasets import index
from lbgen.datasets.open import open_dataset
from lbgen.errors import UserError
from lbgen.generation.card.coco import compressed, run_lengths
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import PlannedImage
from lbgen.generation.render import name_spans, prompt_of
from lbgen.generation.run import generate
from lbgen.generation.verify import verify
from lbgen.generation.workers.encode import decode_mask, encode_mask
from lbgen.models.generator import load_generator
from lbgen.models.localization import masks
from lbgen.models.localization.masks import otsu, segmented
from lbgen.models.localization.recorder import Recorder
from lbgen.models.noise import stacked_noise
from lbgen.models.sampling import render_images
from lbgen.vocabulary.vocabulary import load_vocabulary

LAYOUTS = ("imagefolder", "webdataset", "parquet")


LEAST = 0.0985
"""About half of the images of random weights have a larger contrast."""


@pytest.fixture(scope="module", autouse=True)
def least_contrast():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "LEAST_CONTRAST", LEAST)
        yield


@pytest.fixture(scope="module")
def made(config, tmp_path_factory) -> dict[str, GenerateConfig]:
    """By layout, the session's images with masks, in two splits; ids with dots."""
    folder = tmp_path_factory.mktemp("localized")
    (folder / "names.csv").write_text("id,name\nz.1,cat\na2,dog\nm3,red fox\n")
    found = {}
    for layout in LAYOUTS:
        found[layout] = replace(
            config, output=str(folder / layout), format=layout, localize=True, vocabulary=str(folder / "names.csv")
        )
        generate(found[layout])
        generate(replace(found[layout], split="val", images_per_category=1))
    return found


@pytest.fixture
def copies(made, tmp_path) -> dict[str, Path]:
    return {layout: Path(shutil.copytree(each.output, tmp_path / layout)) for layout, each in made.items()}


def rows_of(folder: str | Path) -> list[dict]:
    return index.read_index(folder).to_pylist()


def masks_of(folder: str | Path) -> dict[str, np.ndarray]:
    """Mask of each image by the index's key, as the audit's reader finds it."""
    found = {}
    for record in open_dataset(Path(folder)).records():
        assert record.mask, record.key
        key = Path(record.key).stem.replace("%2E", ".")
        found[record.split, key] = np.asarray(Image.open(BytesIO(record.mask)))
    return found


# ---- what is stored ----


def test_images_are_those_without_masks(config, made, tmp_path):
    """By their pixels' files, byte for byte, and no part of the index without masks has another column."""
    plain = replace(made["imagefolder"], output=str(tmp_path / "plain"), localize=False)
    generate(plain)
    hashes = {row["key"]: row["sha256"] for row in rows_of(plain.output)}
    assert hashes == {
        row["key"]: row["sha256"] for row in rows_of(made["imagefolder"].output) if row["split"] == "train"
    }
    schema = pq.read_schema(Path(plain.output, "index/train-00000.parquet"))
    assert schema.names == index.SCHEMA.names and index.VERSION not in schema.metadata
    assert {path.name for path in Path(plain.output).iterdir()}.isdisjoint({"masks", "annotations"})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_masks_that_the_index_describes(made, layout):
    found, rows = masks_of(made[layout].output), rows_of(made[layout].output)
    assert len(found) == len(rows) == 15 and any(row["box"] for row in rows)
    for row in rows:
        mask = found[row["split"], row["key"]]
        assert mask.shape == (32, 32) and set(np.unique(mask)) <= {0, 255}
        places = np.argwhere(mask)
        if row["box"] is None:
            assert not len(places) and row["mask_score"] == 0
        else:
            (y, x), (bottom, right) = places.min(axis=0), places.max(axis=0) + 1
            assert row["box"] == [x, y, right - x, bottom - y] and 0 < row["mask_score"] <= 1


def test_masks_lie_under_the_path_of_their_image(made):
    for row in rows_of(made["imagefolder"].output):
        assert Path(made["imagefolder"].output, "masks", row["file"]).with_suffix(".png").is_file()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pycocotools_reads_the_annotations(made, layout):
    """Its masks, areas and boxes, made from the annotations, are those of the masks; categories are labels plus 1."""
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO

    stored, labels = masks_of(made[layout].output), json.loads(Path(made[layout].output, "labels.json").read_text())
    for split in ("train", "val"):
        coco = COCO(str(Path(made[layout].output, f"annotations/instances_{split}.json")))
        rows = {Path(row["key"]).name: row for row in rows_of(made[layout].output) if row["split"] == split}
        assert len(coco.imgs) == len(rows)
        for number, image in coco.imgs.items():
            key = Path(image["file_name"]).name.rsplit(".", 1)[0].replace("%2E", ".")
            found = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
            assert len(found) == (rows[key]["box"] is not None)
            for instance in found:
                assert (coco.annToMask(instance) == (stored[split, key] > 0)).all()
                assert instance["area"] == coco_mask.area(coco.annToRLE(instance))
                assert instance["bbox"] == coco_mask.toBbox(coco.annToRLE(instance)).tolist() == rows[key]["box"]
                assert labels[instance["category_id"] - 1]["id"] == rows[key]["id"]


def test_torchvision_reads_the_annotations(made):
    from torchvision.datasets import CocoDetection

    folder = made["imagefolder"].output
    images = CocoDetection(folder, f"{folder}/annotations/instances_train.json")
    assert len(images) == 12 and all(image.size == (32, 32) for image, _ in images)
    assert sum(len(instances) for _, instances in images) == sum(
        row["box"] is not None for row in rows_of(folder) if row["split"] == "train"
    )


def test_run_lengths_are_those_of_pycocotools():
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(0)
    drawn = [rng.random((7, 5)) < share for share in (0, 0.2, 0.5, 1)] + [np.ones((90, 700), bool)]
    drawn += [np.arange(600)[:, None] < rng.integers(0, 600, 40)]
    for mask in drawn:
        expected = coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
        assert compressed(run_lengths(mask)) == expected


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_datasets_shows_masks_and_boxes(made, layout, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = datasets.load_dataset(made[layout].output, cache_dir=str(tmp_path / "cache"), split="train")
    rows = {row["key"]: row for row in rows_of(made[layout].output) if row["split"] == "train"}
    mask = "mask" if layout == "parquet" else "mask.png"
    assert isinstance(loaded.features[mask], datasets.Image) and len(loaded) == 12
    for row, known in zip(loaded, rows.values(), strict=True):
        box = row["objects"]["bbox"] if layout == "parquet" else [row["json"]["box"]] if row["json"]["box"] else []
        assert box == ([known["box"]] if known["box"] else [])
        assert row[mask].getbbox() == (None if not box else (*box[0][:2], box[0][0] + box[0][2], box[0][1] + box[0][3]))
        if layout == "parquet":
            assert row["objects"]["categories"] == [known["label"]] * len(box)


def test_masks_have_the_stored_size(config, tmp_path):
    stored = replace(config, output=str(tmp_path / "small"), localize=True, stored_size=(20, 24), images_per_category=1)
    generate(stored)
    for row in rows_of(stored.output):
        assert Image.open(Path(stored.output, "masks", row["file"])).size == (24, 20)
    assert not verify(stored.output).damaged


# ---- verify, repair, resume, growth ----


def flipped(path: Path) -> None:
    """One pixel of a mask, in a whole PNG."""
    pixels = np.array(Image.open(path))
    pixels[3, 4] = 255 - pixels[3, 4]
    Image.fromarray(pixels).save(path)


def test_verify_finds_and_repairs_masks_and_annotations(copies):
    folder = copies["imagefolder"]
    assert not verify(folder).damaged
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    files = sorted((folder / "masks").rglob("*.png"))
    flipped(files[0])
    files[-1].unlink()
    (folder / "masks/train/a2/more.png").write_bytes(files[0].read_bytes())
    assert sum(".png" in line or "images missing or changed" in line for line in verify(folder).damaged) >= 2
    (folder / "masks/train/a2/more.png").unlink()
    assert not verify(folder, repair=True).damaged
    annotations = folder / "annotations/instances_val.json"
    annotations.write_text(
        annotations.read_text().replace('"bbox": [', '"bbox": [1', 1).replace('"width": 32', '"width": 3')
    )
    assert [line.split(":")[0] for line in verify(folder).damaged] == ["annotations/instances_val.json"]
    assert not verify(folder, repair=True).damaged
    annotations.unlink()
    assert [line.split(":")[0] for line in verify(folder).damaged] == ["annotations/instances_val.json"]
    assert not verify(folder, repair=True).damaged
    changed = {path for path, content in before.items() if path.read_bytes() != content}
    assert not {path for path in changed if path.suffix == ".png" or path.suffix == ".json"}


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_verify_repairs_containers(copies, layout):
    (shard,) = list(copies[layout].glob("*train-00001.tar")) or list(copies[layout].glob("data/train-00001.parquet"))
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    assert verify(copies[layout]).damaged
    assert not verify(copies[layout], repair=True).damaged
    assert shard.read_bytes() == content


def test_a_run_stopped_in_a_shard_ends_with_the_same_masks(made, tmp_path):
    whole = made["imagefolder"]
    again = replace(whole, output=str(tmp_path / "again"))
    generate_with_a_stop(again)
    generate(replace(again, split="val", images_per_category=1))
    assert rows_of(again.output) == rows_of(whole.output)
    assert not verify(again.output).damaged


def test_growth_changes_no_mask(made, copies):
    grown = replace(made["imagefolder"], output=str(copies["imagefolder"]), images_per_category=5)
    generate(grown)
    rows = {(row["split"], row["key"]): row for row in rows_of(grown.output)}
    assert len(rows) == 18 and not verify(grown.output).damaged
    assert all(rows[row["split"], row["key"]] == row for row in rows_of(made["imagefolder"].output))
    assert len(json.loads(Path(grown.output, "annotations/instances_train.json").read_text())["images"]) == 15


def test_another_dataset_is_not_continued(made, config, whole):
    with pytest.raises(UserError, match="was made with localize true"):
        generate(replace(made["imagefolder"], localize=False))
    with pytest.raises(UserError, match="was made with localize false"):
        generate(replace(config, localize=True))


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"screen": ("mask",)}, "--screen .*add --localize"),
        ({"localize": True, "compile": True}, "--compile .*leave it out"),
        ({"localize": True, "deep_cache_interval": 2}, "--deep-cache-interval 2: give at most 1"),
        ({"localize": True, "split": "annotations"}, "--split .*another name"),
        ({"localize": True, "pipeline_instruction": True}, "--pipeline-instruction .*leave it out"),
    ],
)
def test_refusals(config, changes, says):
    with pytest.raises(UserError, match=says):
        replace(config, **changes)


def test_images_without_a_mask_are_drawn_again(config, tmp_path):
    """Images of the plain set without a box have other attempts, the others have none."""
    plain = replace(config, output=str(tmp_path / "plain"), localize=True)
    generate(plain)
    boxes = {row["key"]: row["box"] for row in rows_of(plain.output)}
    assert None in boxes.values() and any(boxes.values())
    screened = replace(plain, output=str(tmp_path / "screened"), screen=("mask",), max_attempts=3)
    generate(screened)
    rows = rows_of(screened.output)
    assert {row["key"] for row in rows if not row["rejections"]} == {
        key for key, box in boxes.items() if box is not None
    }
    assert all(row["rejections"] == ["mask"] * len(row["rejections"]) for row in rows)
    assert all((row["box"] is None) == (len(row["rejections"]) == 3) for row in rows)
    assert not verify(screened.output).damaged


# ---- where the name is, and how much the image attends to it ----


def test_the_name_is_found_in_any_template(config, tiny_generator):
    category = load_vocabulary(config.vocabulary)[2]  # red fox
    image = PlannedImage(category, 2, 0)
    templated = replace(config, prompt_template="a {name}, {name} of")
    prompt, spans = prompt_of(image, templated), name_spans(image, templated)
    assert [prompt[begin:end] for begin, end in spans] == ["red fox", "red fox"]
    tokenizer = tiny_generator.family.pipeline.tokenizer
    ids = tokenizer("a red").input_ids
    first = tiny_generator.family.tokens_at("a red", [(2, 5)])
    assert [ids[place] for place in first[:3]] == tokenizer("red").input_ids[1:-1]
    assert first[3:] == tuple(range(len(ids) - 1, 16))


@torch.no_grad()
def test_attention_is_that_of_diffusers_own_weights(tiny_generator):
    """Written out with diffusers' attention processor of before torch 2, which computes all weights."""
    keys, prompts = [("z1", 0, 0), ("z1", 1, 0)], ["photo of cat", "dog"]
    tokens = [[3, 4], [1]]
    recorder = Recorder(tiny_generator.family.text_attention, tokens, (8, 8))
    with recorder.attached(tiny_generator):
        ours = render_images(tiny_generator, keys, prompts, seed=0, steps=2)
    found: list[torch.Tensor] = []

    class Weights:
        def __call__(self, attn: Attention, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
            text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            parts = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
            query, key, value = map(attn.head_to_batch_dim, parts)
            weights = attn.get_attention_scores(query, key, attention_mask)
            if encoder_hidden_states is not None:
                found.append(weights.view(4, attn.heads, *weights.shape[1:])[2:].mean(dim=1))  # (2, Q, T)
            return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(weights @ value)))

    network = tiny_generator.family.network
    before = network.attn_processors
    network.set_attn_processor(Weights())
    theirs = render_images(tiny_generator, keys, prompts, seed=0, steps=2)
    network.set_attn_processor(before)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    layers, fewest = [], min(weights.shape[1] for weights in found)
    assert any(weights.shape[1] > fewest for weights in found)
    for weights in found:
        if weights.shape[1] == fewest:
            continue
        side = round(weights.shape[1] ** 0.5)
        seen = torch.stack([weights[row, :, tokens[row]].sum(dim=1).view(side, side) for row in range(2)])
        layers.append(torch.nn.functional.interpolate(seen[:, None], (8, 8), mode="bicubic")[:, 0])
    torch.testing.assert_close(recorder.paid(), torch.stack(layers).mean(dim=0).clamp(0, 1), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_what_the_prompt_changes_is_the_difference_of_two_calls(tiny_generator):
    """Both predictions computed apart; the first step does not count."""
    family, keys, prompts = tiny_generator.family, [("z1", 0, 0), ("z1", 1, 0)], ["photo of cat", "dog"]
    recorder = Recorder(family.text_attention, [[3, 4], [1]], (8, 8), first_step=1)
    with recorder.attached(tiny_generator):
        render_images(tiny_generator, keys, prompts, seed=0, steps=2)
    shape = tiny_generator.latent_shape(*tiny_generator.default_size)
    latents, schedule, squares = stacked_noise(0, keys, shape)[0], tiny_generator.timesteps(2, shape), []
    for timestep in schedule.timesteps:
        seen = schedule.scaled(latents, timestep)
        conditional, empty = (
            family.predict(family.network, seen, timestep, family.encode(texts)) for texts in (prompts, ["", ""])
        )
        squares.append((conditional - empty).square().sum(dim=1))
        latents = schedule.step(tiny_generator.guidance.combine(empty, conditional), timestep, latents)
    expected = recorder.paid() * torch.stack(squares[1:]).sum(dim=0) ** 0.25
    torch.testing.assert_close(recorder.maps(), expected, rtol=1e-3, atol=1e-6)


def test_the_score_is_the_overlap_of_masks_at_two_thresholds():
    """Of a ramp, as its levels 0 to 255 give it; where an edge is sharp, every threshold gives the same mask."""
    ramp = torch.linspace(0, 1, 256).expand(1, 64, 256)
    pixels = (ramp * 255).round().to(torch.uint8).expand(1, 3, 64, 256)
    found, score = segmented(ramp, pixels)
    assert abs(found.float().mean() - 0.5) < 0.05
    assert abs(score - (127.5 - masks.OFFSET) / (127.5 + masks.OFFSET)) < 0.05
    step = (ramp > 0.5).float()
    assert segmented(step, (step * 255).to(torch.uint8).expand(1, 3, 64, 256))[1] == 1


def test_a_map_without_contrast_has_no_mask_and_no_score():
    flat, pixels = 1 + 0.05 * torch.rand(2, 16, 16), torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    found, scores = segmented(flat, pixels)
    assert not found.any() and not scores.any()


def test_a_map_gets_the_edges_that_kornia_gives_it():
    """By its guided filter (He et al.), on pictures of the size at which the coefficients are computed."""
    from kornia.filters import guided_blur

    pixels, coarse = torch.randint(256, (2, 3, masks.SIDE, masks.SIDE), dtype=torch.uint8), torch.rand(2, 16, 16)
    enlarged = torch.nn.functional.interpolate(coarse[:, None], (masks.SIDE,) * 2, mode="bicubic")
    expected = guided_blur(pixels / 255, enlarged, 2 * masks.RADIUS + 1, masks.SMOOTHNESS)[:, 0]
    torch.testing.assert_close(masks.refined(coarse, pixels, scaled=False), expected, rtol=1e-4, atol=1e-4)


def test_otsu_is_that_of_its_definition():
    """Against all thresholds, one after the other."""
    levels = (
        torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 9, 9)))
        // torch.tensor([1, 3, 50])[:, None, None]
    )
    for image, found in zip(levels.numpy(), otsu(levels).tolist(), strict=True):
        between = [
            (image <= t).mean() * (image > t).mean() * (image[image <= t].mean() - image[image > t].mean()) ** 2
            for t in range(image.min(), image.max())
        ]
        assert between[found - image.min()] == pytest.approx(max(between))


def test_tiny_generator_is_as_before_after_a_recording(tiny_sd_folder):
    """Nothing stays attached."""
    generator = load_generator(str(tiny_sd_folder))
    recorder = Recorder(generator.family.text_attention, [[1]], (8, 8))
    with pytest.raises(UserError, match="stopped"), recorder.attached(generator):
        raise UserError("stopped")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in generator.family.network.modules())


def test_a_mask_of_another_size_is_not_decoded():
    """So that a received file takes no more memory than its image."""
    content = encode_mask(np.ones((4, 6), bool))
    assert decode_mask(content, (4, 6)).all()
    with pytest.raises(ValueError, match="4 x 6"):
        decode_mask(content, (6, 4))

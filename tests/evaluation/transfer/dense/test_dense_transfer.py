"""Whole transfers to detection and segmentation on a few renders: what is written, resumed and compared."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

import lbgen
from lbgen.errors import UserError
from lbgen.evaluation.transfer.dense import training
from lbgen.evaluation.transfer.dense.measure import DenseMeasurer


@pytest.fixture(scope="module")
def segmented(base, aligned, ade, tmp_path_factory):
    """Two backbones, two shares, two seeds."""
    config = lbgen.TransferConfig(
        output=str(tmp_path_factory.mktemp("dense") / "out"), data=str(ade), method=("segmentation",),
        fraction=(0.5, 1.0), seeds=2, epochs=2, batch_size=4, image_size=64,
    )  # fmt: skip
    lbgen.transfer([base, aligned], config)
    return config


def content(folder):
    return json.loads((folder / "transfer.json").read_text())


def test_transfer_json_has_the_mean_over_seeds_with_students_interval(segmented):
    stored = content(segmented.folder)
    assert set(stored["backbones"]) == {"base", "aligned"}
    methods = stored["backbones"]["base"]["ade"]
    assert list(methods) == ["segmentation", "segmentation-50%"]
    for method, found in methods.items():
        assert set(found) == {"metric", "value", "low", "high", "n_test"}
        assert found["metric"] == "mIoU" and found["n_test"] == 6 and 0 < found["value"] < 1
        draws = stored["details"]["base"]["ade"][method]["draws"]
        low, high = stats.t.interval(0.95, 1, np.mean(draws), stats.sem(draws))
        assert len(set(draws)) == 2 and found["value"] == pytest.approx(np.mean(draws))
        assert (found["low"], found["high"]) == pytest.approx((max(low, 0), min(high, 1)))
    images = [stored["details"]["base"]["ade"][method]["images"]["train"] for method in methods]
    assert images == [12, 6] and stored["datasets"]["ade"]["categories"] == 4


def test_the_value_follows_from_the_answers_that_are_kept(segmented):
    details = content(segmented.folder)["details"]["aligned"]["ade"]["segmentation"]
    rows = pq.read_table(segmented.folder / details["answers"]).to_pylist()
    for draw, value in enumerate(details["draws"]):
        own = [row for row in rows if row["draw"] == draw]
        both, either = (np.sum([row[name] for row in own], axis=0) for name in ("intersections", "unions"))
        assert len(own) == 6 and np.mean(both[either > 0] / either[either > 0]) == pytest.approx(value)
        assert details["figures"][draw]["IoU 4"] == pytest.approx(both[3] / either[3])


def test_a_finished_transfer_is_not_trained_again_and_another_share_adds(
    segmented, base, aligned, tmp_path, monkeypatch
):
    here = replace(segmented, output=str(tmp_path / "out"))
    shutil.copytree(segmented.folder, here.folder)
    before = content(here.folder)
    monkeypatch.setattr(training, "training_step", None)
    lbgen.transfer([base, aligned], here)
    assert content(here.folder)["backbones"] == before["backbones"]
    monkeypatch.undo()
    lbgen.transfer(base, replace(here, fraction=(0.25,), seeds=1))
    after = content(here.folder)["backbones"]
    added = after["base"]["ade"].pop("segmentation-25%")
    assert added["low"] < added["value"] < added["high"] and after == before["backbones"]


def test_other_settings_or_images_are_refused(segmented, base, aligned, ade, tmp_path):
    with pytest.raises(UserError, match="was made with epochs 2, this run asks for 3; choose another --output or give"):
        lbgen.transfer(base, replace(segmented, epochs=3))
    shutil.copytree(ade, tmp_path / "ade")
    (tmp_path / "ade/images/training/ADE_00000000.png").unlink()
    with pytest.raises(UserError, match="was made with data_sha256 "):
        lbgen.transfer(base, replace(segmented, data=str(tmp_path / "ade")))
    shutil.copytree(aligned, tmp_path / "base")
    with pytest.raises(UserError, match="was made with backbone_sha256 "):
        lbgen.transfer(tmp_path / "base", segmented)


def test_a_training_that_was_killed_ends_with_the_same_answers(segmented, base, tmp_path, monkeypatch):
    """Stopped within the second epoch of the second seed: the first seed is kept, and so is the first epoch."""
    again, step, updates = replace(segmented, output=str(tmp_path / "out"), fraction=(1.0,)), training.training_step, []

    def interrupted(setup, *rest):
        updates.append((setup.seed, rest[-1]))
        if updates[-1] == (1, 4) and updates.count((1, 4)) == 1:
            raise KeyboardInterrupt
        return step(setup, *rest)

    monkeypatch.setattr(training, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lbgen.transfer(base, again)
    assert len(list((again.folder / "trainings").glob("*.pt"))) == 1
    lbgen.transfer(base, again)
    assert updates == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 5)] + [
        (1, each) for each in (0, 1, 2, 3, 4, 3, 4, 5)
    ]
    found, whole = (content(each.folder)["details"]["base"]["ade"]["segmentation"] for each in (again, segmented))
    assert found == whole and list((again.folder / "trainings").glob("*.pt")) == []
    answers = [pq.read_table(each.folder / found["answers"]) for each in (again, segmented)]
    assert answers[0].equals(answers[1])


def test_more_seeds_train_only_those_that_are_not_there(segmented, base, tmp_path, monkeypatch):
    here, seeds, measured = replace(segmented, output=str(tmp_path / "out"), fraction=(0.5,)), [], DenseMeasurer._store
    monkeypatch.setattr(DenseMeasurer, "_store", lambda self, *rest: seeds.append(1) or measured(self, *rest))
    for count, trained in ((1, 1), (2, 2), (1, 2)):
        lbgen.transfer(base, replace(here, seeds=count))
        assert len(seeds) == trained
    assert content(here.folder)["backbones"]["base"] == {
        "ade": {"segmentation-50%": content(segmented.folder)["backbones"]["base"]["ade"]["segmentation-50%"]}
    }


def test_backbones_are_compared_over_seeds(segmented, capsys):
    """Student's paired test, against scipy's."""
    compared = lbgen.compare(segmented.folder / "transfer.json")
    stored = content(segmented.folder)["details"]
    for each in compared.differences:
        pair = [stored[name]["ade"][each.method]["draws"] for name in ("aligned", "base")]
        assert each.note == "paired t over seeds" and each.p_value == pytest.approx(stats.ttest_rel(*pair).pvalue)
    page = (segmented.folder / "report.html").read_text()
    assert "Semantic segmentation, 50% of the images" in page and "mean IoU" in page


def test_detection_gives_boxes_and_masks_beside_other_methods(segmented, base, aligned, coco, tmp_path, capsys):
    """One update of Mask R-CNN; the folder already holds segmentations, whose settings are others."""
    output = tmp_path / "out"
    shutil.copytree(segmented.folder, output)
    config = lbgen.TransferConfig(
        output=str(output), data=str(coco), method=("detection",), fraction=(0.2,), epochs=1, image_size=64
    )
    lbgen.transfer([base, aligned], config)
    stored = content(output)
    methods = stored["backbones"]["base"]["coco"]
    assert {name: each["metric"] for name, each in methods.items()} == {
        "detection-20%": "box_AP",
        "detection_mask-20%": "mask_AP",
    }
    assert "segmentation" in stored["backbones"]["base"]["ade"]
    details = stored["details"]["base"]["coco"]["detection-20%"]
    assert details["images"]["train"] == 2 and details["figures"][0]["box_AP"] == methods["detection-20%"]["value"]
    rows = pq.read_table(output / details["answers"]).to_pylist()
    assert {row["category"] for row in rows} <= {"fish", "cup", "mushroom"} and all(
        0 < row["score"] <= 1 for row in rows
    )
    notes = {each.note for each in lbgen.compare(output).differences if each.dataset == "coco"}
    assert notes == {"bootstrap over images"} and "detection_mask-20%, %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": ("detection", "linear")}, "--method detection linear: detection reads --data in its own way"),
        ({"method": ("detection",), "shots": ("1",)}, "--shots 1: with detection give --fraction, such as 0.2"),
        ({"method": ("detection",), "datasets": ("dtd",)}, "--datasets dtd: detection reads --data itself; leave it"),
        ({"method": ("segmentation",), "learning_rates": (1e-3, 1e-4)}, "segmentation trains with a single one; give"),
        ({"fraction": (0.2,)}, "--fraction 0.2: it is for detection and segmentation; give --shots 20%"),
        ({"method": ("detection",), "fraction": (0.0,)}, "--fraction 0.0: give shares in (0, 1], such as 0.2 1.0"),
        ({"image_size": 64}, "--image-size 64: it is for detection and segmentation; leave it out"),
        ({"method": ("detection",), "image_size": 16}, "--image-size 16: give 32 to 4096"),
    ],
)
def test_flags_of_other_methods_are_refused(fields, message):
    with pytest.raises(UserError) as refused:
        lbgen.TransferConfig(**fields)
    assert str(refused.value).startswith(message) or message in str(refused.value)

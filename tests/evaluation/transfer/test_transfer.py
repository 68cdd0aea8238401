"""The whole stage on a small set of noise in three tints: values against scikit-learn, resume, and what is refused."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from torchvision.transforms import v2

import lbgen
from lbgen.cli import main
from lbgen.errors import UserError
from lbgen.evaluation.transfer.methods import features, finetune, linear
from lbgen.evaluation.transfer.run import say_opening

SIZES = {"train": 12, "val": 6, "test": 10}
"""Images of each category."""


@pytest.fixture(scope="module")
def tints(tmp_path_factory):
    """DIR/<split>/<category>/<number>.png; the tints overlap."""
    folder, rng = tmp_path_factory.mktemp("data") / "tints", np.random.default_rng(0)
    for split, count in SIZES.items():
        for channel, category in enumerate(("blue", "green", "red")):
            (folder / split / category).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 200, (32, 32, 3))
                pixels[..., channel] += rng.integers(-20, 40)
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(folder / split / category / f"{number}.png")
    return folder


@pytest.fixture(scope="module", autouse=True)
def fewer_costs():
    """Nine of the 45 values of C, to be quick; test_linear counts them all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "COSTS", linear.COSTS[::5])
        yield


@pytest.fixture(scope="module")
def config(tints, tmp_path_factory):
    return lbgen.TransferConfig(
        output=str(tmp_path_factory.mktemp("transfer") / "out"), data=str(tints.parent), datasets=("tints",),
        shots=("50%", "3"), seeds=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(base, aligned, config):
    """A whole transfer of two backbones."""
    lbgen.transfer([base, aligned], config)
    return config.folder


def content(folder):
    return json.loads((folder / "transfer.json").read_text())


def by_timm(backbone, paths):
    """(N, D) features, without lbgen."""
    model = timm.create_model("test_resnet", num_classes=5)
    model.load_state_dict(load_file(backbone / "backbone.safetensors"))
    prepare = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])
    images = torch.stack([prepare(Image.open(path)) for path in paths])
    model.eval()
    with torch.no_grad():
        return model.forward_head(model.forward_features(images), pre_logits=True).double().numpy()


def test_the_linear_probe_is_scikit_learns_on_timms_features(done, base, tints):
    """C chosen on val, refitted on train and val, tested once."""
    places = {split: sorted((tints / split).rglob("*.png")) for split in SIZES}
    rows = {split: by_timm(base, paths) for split, paths in places.items()}
    label = {split: [path.parent.name for path in paths] for split, paths in places.items()}

    def value(cost, fitted, tested):
        found = LogisticRegression(C=cost, max_iter=20000, tol=1e-8)
        found.fit(np.concatenate([rows[each] for each in fitted]), sum((label[each] for each in fitted), []))
        return found.score(rows[tested], label[tested])

    on_val = {cost: value(cost, ["train"], "val") for cost in linear.COSTS}
    best = max(on_val, key=on_val.get)  # the strongest penalty among equals
    stored = content(done)
    chosen = stored["details"]["base"]["tints"]["linear"]["chosen"]
    assert chosen == [{"C": pytest.approx(best), "val": pytest.approx(on_val[best])}]
    found = stored["backbones"]["base"]["tints"]["linear"]
    assert found["value"] == pytest.approx(value(best, ["train", "val"], "test")) and 0.4 < found["value"] < 1
    assert found["metric"] == "accuracy" and found["n_test"] == 30 and found["low"] <= found["value"] <= found["high"]
    assert set(found) == {"metric", "value", "low", "high", "n_test"}


def test_values_of_few_shots_are_means_over_draws_with_students_interval(done):
    from scipy import stats

    stored = content(done)
    for method in ("linear-50%", "linear-3shot"):
        found, more = (stored[part]["base"]["tints"][method] for part in ("backbones", "details"))
        assert len(more["draws"]) == 2 and found["value"] == pytest.approx(np.mean(more["draws"]))
        low, high = stats.t.interval(0.95, 1, np.mean(more["draws"]), stats.sem(more["draws"]))
        assert (found["low"], found["high"]) == pytest.approx((max(low, 0), min(high, 1)))
    assert stored["details"]["base"]["tints"]["linear-3shot"]["images"] == {"train": 9, "val": 9, "final": 9}
    assert stored["details"]["base"]["tints"]["linear-50%"]["images"] == {"train": 18, "val": 9, "final": 27}


def test_answers_of_every_test_image_are_kept(done, tints):
    """The value follows from the table, and its images are those of the folder."""
    stored = content(done)
    for method in ("linear", "linear-3shot"):
        table = pq.read_table(done / stored["details"]["aligned"]["tints"][method]["answers"])
        rows = table.to_pylist()
        right = [row["label"] == row["prediction"] for row in rows]
        assert stored["backbones"]["aligned"]["tints"][method]["value"] == pytest.approx(np.mean(right))
        assert {row["key"] for row in rows} == {
            str(path.relative_to(tints)) for path in (tints / "test").rglob("*.png")
        }
        assert all(row["key"].split("/")[1] == row["label"] for row in rows)


def test_a_finished_transfer_is_not_computed_again(done, base, aligned, config, monkeypatch):
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    monkeypatch.setattr(linear, "solve", None)
    monkeypatch.setattr(features.FeatureCache, "_compute", None)
    lbgen.transfer([base, aligned], config)
    assert {path: path.read_bytes() for path in done.rglob("*") if path.is_file()} == before


def test_lost_answers_are_made_again(done, base, aligned, config, tmp_path):
    folder = shutil.copytree(done, tmp_path / "out")
    kept = {path.name: path.read_bytes() for path in (folder / "answers").iterdir()}
    shutil.rmtree(folder / "answers")
    lbgen.transfer([base, aligned], replace(config, output=str(folder)))
    assert {path.name: path.read_bytes() for path in (folder / "answers").iterdir()} == kept
    assert content(folder) == content(done) | {"made_with": content(folder)["made_with"]}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("method", "linear-xshot", r"method: Expected .* matching regex"),
        ("method", "finetune", "the file's name is not that of its backbone, data set and method; remove it"),
        ("backbone", "better", "the file's name is not that of its backbone, data set and method; remove it"),
        ("value", 0.01, r"value: 0.01 lies outside of its interval, .*; remove it"),
    ],
)
def test_a_changed_result_is_refused(done, base, aligned, config, tmp_path, field, value, message):
    folder = shutil.copytree(done, tmp_path / "out")
    path = next(path for path in (folder / "results").iterdir() if json.loads(path.read_text())["method"] == "linear")
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(UserError, match=rf"{path.name}.*{message}"):
        lbgen.transfer([base, aligned], replace(config, output=str(folder)))


def test_what_is_no_backbone_is_refused_before_another_is_measured(base, config, tmp_path, monkeypatch):
    monkeypatch.setattr(features.FeatureCache, "_compute", None)
    with pytest.raises(UserError, match="nix"):
        lbgen.transfer([str(base), "nix"], replace(config, output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_what_was_interrupted_goes_on_with_the_same_values(done, base, aligned, config, tmp_path, monkeypatch):
    """Stopped at the third result, whose features are there already; in the end every file is the same."""
    again = replace(config, output=str(tmp_path / "again"))
    solve, seen = linear.solve, []

    def interrupted(*arguments):
        if len(list((tmp_path / "again/results").glob("*.json"))) == 2:
            raise KeyboardInterrupt
        return solve(*arguments)

    monkeypatch.setattr(linear, "solve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lbgen.transfer([base, aligned], again)
    assert not (tmp_path / "again/transfer.json").exists()
    monkeypatch.setattr(linear, "solve", solve)
    compute = features.FeatureCache._compute
    monkeypatch.setattr(
        features.FeatureCache,
        "_compute",
        lambda self, backbone, *rest: seen.append(backbone.name) or compute(self, backbone, *rest),
    )
    lbgen.transfer([base, aligned], again)
    assert seen == [str(aligned)]
    for part in ("results", "answers", "cache"):
        names = {path.name for path in (done / part).iterdir()}
        assert {path.name for path in (again.folder / part).iterdir()} == names
        for name in names:
            assert (again.folder / part / name).read_bytes() == (done / part / name).read_bytes()


@pytest.mark.parametrize(("count", "draws", "results"), [(1, "1 draw", "1 result"), (2, "2 draws", "2 results")])
def test_the_opening_counts_one_thing_as_one(config, tmp_path, capsys, count, draws, results):
    config = replace(config, output=str(tmp_path), shots=("1",), seeds=count)
    (tmp_path / "results").mkdir()
    for number in range(count):
        (tmp_path / f"results/{number}.json").touch()
    say_opening({}, {}, config, "CPU")
    shown = capsys.readouterr().out
    assert f"few-shot: 1, {draws}\n" in shown and shown.endswith(f"\ngoing on with {results} from before\n")


def test_fine_tuning_goes_on_after_the_last_pair_that_was_judged(base, config, tmp_path, monkeypatch):
    """Stopped in the second of two pairs: the first is not trained again, and the results are the same."""
    train, seen = finetune.train, []

    def counted(setup, pair, rows, label):
        seen.append(pair.learning_rate)
        if seen == [1e-4, 1e-2] and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            raise KeyboardInterrupt
        return train(setup, pair, rows, label)

    monkeypatch.setattr(finetune, "train", counted)
    settings = {
        "method": ("finetune",),
        "shots": (),
        "epochs": 1,
        "learning_rates": (1e-4, 1e-2),
        "weight_decays": (0,),
    }
    halved, whole = (replace(config, output=str(tmp_path / name), **settings) for name in ("halved", "whole"))
    with pytest.raises(KeyboardInterrupt):
        lbgen.transfer(base, halved)
    lbgen.transfer(base, halved)
    assert seen[:3] == [1e-4, 1e-2, 1e-2] and len(seen) == 4  # the last one is fitted on train and val
    lbgen.transfer(base, whole)
    first, second = (content(each.folder) for each in (halved, whole))
    assert first["backbones"] == second["backbones"] and first["details"] == second["details"]
    chosen = first["details"]["base"]["tints"]["finetune"]["chosen"][0]
    assert set(chosen) == {"learning_rate", "weight_decay", "val"}


def test_another_method_adds_to_a_folder(done, base, config, tmp_path):
    """What is there stays in transfer.json."""
    shutil.copytree(done, tmp_path / "more")
    before = content(tmp_path / "more")["backbones"]
    lbgen.transfer(base, replace(config, output=str(tmp_path / "more"), shots=("1",)))
    after = content(tmp_path / "more")["backbones"]
    assert after["base"]["tints"].pop("linear-1shot")["n_test"] == 30
    assert after == before


def test_other_weights_or_images_under_the_same_name_are_refused(done, base, aligned, tints, config, tmp_path):
    shutil.copytree(done, tmp_path / "out")
    here = replace(config, output=str(tmp_path / "out"))
    shutil.copytree(aligned, tmp_path / "base")
    with pytest.raises(UserError, match="linear of base on tints, was made with backbone_sha256 .*; restore the backb"):
        lbgen.transfer(tmp_path / "base", here)
    shutil.copytree(tints, tmp_path / "tints")
    (tmp_path / "tints/train/red/0.png").unlink()
    with pytest.raises(UserError, match="was made with data_sha256 "):
        lbgen.transfer(base, replace(here, data=str(tmp_path)))
    with pytest.raises(UserError, match="was made with seeds 2, this run asks for 3; choose another --output or give"):
        lbgen.transfer(base, replace(here, seeds=3))


def test_a_moved_backbone_and_a_moved_set_are_the_same(done, base, tints, config, tmp_path, monkeypatch):
    shutil.copytree(done, tmp_path / "out")
    shutil.copytree(base, tmp_path / "elsewhere/base")
    shutil.copytree(tints, tmp_path / "elsewhere/tints")
    monkeypatch.setattr(linear, "solve", None)
    lbgen.transfer(
        tmp_path / "elsewhere/base", replace(config, output=str(tmp_path / "out"), data=str(tmp_path / "elsewhere"))
    )


def test_digits_on_the_command_line(base, tmp_path, capsys):
    """scikit-learn's scans need no file; the contract of transfer.json."""
    output = str(tmp_path / "out")
    main(
        [
            "transfer",
            str(base),
            "--datasets",
            "digits",
            "flowers102",
            "--data",
            str(tmp_path),
            "--output",
            output,
            "--quiet",
        ]
    )
    told = capsys.readouterr()
    assert 'Flowers102("' in told.err and re.search(r"base +\d\d\.\d", told.out)
    found = json.loads((tmp_path / "out/transfer.json").read_text())
    value = found["backbones"]["base"]["digits"]["linear"]
    assert 0.5 < value["value"] < 1 and value["n_test"] == 359
    sizes = found["datasets"]["digits"]
    assert (sizes["train"], sizes["val"], sizes["categories"]) == (1151, 287, 10) and list(found["missing"]) == [
        "flowers102"
    ]

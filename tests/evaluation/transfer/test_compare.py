"""Paired tests against scipy and enumeration; lbgen compare on transfers that are written by hand."""

import json
import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

import lbgen
from lbgen.cli import main
from lbgen.errors import UserError
from lbgen.evaluation.transfer import comparison, stored
from lbgen.evaluation.transfer.comparison import AVERAGE
from lbgen.evaluation.transfer.scores import over_seeds
from lbgen.evaluation.transfer.stored import StoredAnswers
from lbgen.evaluation.transfer.tables import Grid
from lbgen.metrics.paired_tests import exchange_test, mcnemar, paired_t_of


def answers(rng, label, share, draws=1):
    return rng.random((draws, len(label))) < share


def test_mcnemar_is_scipys_exact_binomial_test():
    rng = np.random.default_rng(0)
    for share in (0.3, 0.5, 0.8):
        first, second = rng.random(60) < 0.5, rng.random(60) < share
        gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
        expected = stats.binomtest(gained, gained + lost).pvalue
        assert mcnemar(first, second) == pytest.approx(expected)
    assert mcnemar(first, first) == 1


def test_random_exchanges_come_close_to_all_of_them():
    """Against every exchange of the answers on the images where they differ, of unequal categories."""
    label = np.array([0] * 3 + [1] * 5 + [2] * 9)
    rng = np.random.default_rng(1)
    first, second = rng.random(17) < 0.5, rng.random(17) < 0.7
    weights = (second.astype(float) - first) / np.bincount(label)[label]
    weights = weights[weights != 0]
    sums = [abs(np.dot(signs, weights)) for signs in product((-1, 1), repeat=len(weights))]
    exact = np.mean([total >= abs(weights.sum()) - 1e-12 for total in sums])
    assert exchange_test(first, second, label, 0) == pytest.approx(exact, abs=0.02)


def test_draws_are_compared_by_students_paired_test():
    label, rng = np.array(list("aabbbb")), np.random.default_rng(2)
    first, second = (StoredAnswers(tuple("123456"), label, answers(rng, label, share, 5)) for share in (0.4, 0.7))

    def per_class(right):
        return np.mean([right[:, label == name].mean(axis=1) for name in "ab"], axis=0)

    expected = stats.ttest_rel(per_class(second.right), per_class(first.right))
    estimate, p_value, *_ = paired_t_of(comparison.gains_of(first, second, "mean_per_class"))
    assert p_value == pytest.approx(expected.pvalue)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_a_name_with_a_line_end_takes_one_line_of_a_table():
    assert Grid("title", ["", "x"], [["a\nb\x1b[2J", "1"]]).text().splitlines()[2] == "a\\nb\\x1b[2J  1"


def test_gains_without_a_spread_are_not_tested():
    """Of a few draws that all gain alike, Student's error would be 0, and any gain certain."""
    for gains in ([0.025] * 3, [0.0] * 5, [0.1]):
        estimate, p_value, *_ = paired_t_of(np.array(gains))
        assert estimate.value == pytest.approx(gains[0]) and math.isnan(p_value) and math.isnan(estimate.low)
    assert math.isnan(over_seeds([0.9, 0.9, 0.9]).low)


def test_an_average_of_few_draws_has_the_interval_of_welch():
    """Of two data sets, gain on the one minus loss on the other is scipy's comparison of two means."""
    rng = np.random.default_rng(4)
    gains, losses = rng.normal(0.1, 0.02, 3), rng.normal(0.02, 0.05, 4)
    each = [
        comparison._by_student(gains, "draw", comparison._untested("b", "x", "linear-1shot", gains.mean())),
        comparison._by_student(-losses, "draw", comparison._untested("b", "y", "linear-1shot", -losses.mean())),
    ]
    average, expected = comparison._average("b", "linear-1shot", each), stats.ttest_ind(gains, losses, equal_var=False)
    limits = np.array(expected.confidence_interval()) / 2
    assert average.p_value == pytest.approx(expected.pvalue) and average.note == "Welch's t"
    assert (average.estimate.low, average.estimate.high) == pytest.approx(tuple(limits))


def test_the_interval_of_a_difference_is_that_of_paired_images():
    """By the normal approximation of a mean of paired differences; one of unpaired images is far wider."""
    rng, label = np.random.default_rng(3), np.zeros(2000, int)
    first = rng.random(2000) < 0.7
    second = first ^ (rng.random(2000) < 0.05)
    estimate = comparison.difference_estimate(first, second, label, "accuracy")
    gain = second.astype(float) - first
    half = 1.96 * gain.std() / math.sqrt(2000)
    assert (estimate.low, estimate.high) == pytest.approx((gain.mean() - half, gain.mean() + half), abs=half / 8)


def test_equal_answers_still_have_an_interval():
    """If 3 / N of all images differed, none of N would in 5% of the samples."""
    right = np.arange(100) % 3 > 0
    estimate = comparison.difference_estimate(right, right, np.zeros(100, int), "accuracy")
    assert estimate.value == 0 and estimate.high == -estimate.low
    assert (1 - estimate.high) ** 100 == pytest.approx(0.05, abs=0.005)


# ---- lbgen compare ----

DATASETS = {"pets": ("mean_per_class", 60), "dtd": ("accuracy", 80), "food": ("accuracy", 50)}


def write_transfer(folder, name, share, seed, few=3):
    """As a transfer leaves it: the same images for every seed, other answers."""
    rng, backbones, details = np.random.default_rng(seed), {}, {}
    (folder / "answers").mkdir(parents=True)
    for dataset, (metric, count) in DATASETS.items():
        label = np.arange(count) % 3 % 2
        for method, draws in (("linear", 1), ("linear-1shot", few)):
            right = answers(rng, label, share, draws)
            file = f"answers/{dataset}-{method}.parquet"
            predictions = [np.where(row, label, 1 - label).astype(str).tolist() for row in right]
            images = [f"{dataset} {number}" for number in range(count)]
            table = stored.answer_table(images, images, label.astype(str).tolist(), predictions)
            stored.pq.write_table(table, folder / file)
            per_class = np.mean([right[:, label == each].mean(axis=1) for each in (0, 1)], axis=0)
            value = float((per_class if metric == "mean_per_class" else right.mean(axis=1)).mean())
            entry = {"metric": metric, "value": value, "low": 0.0, "high": 1.0, "n_test": count}
            backbones.setdefault(dataset, {})[method] = entry
            details.setdefault(dataset, {})[method] = {"answers": file, "more": 1}
    (folder / "transfer.json").write_text(json.dumps({"backbones": {name: backbones}, "details": {name: details}}))
    return folder / "transfer.json"


@pytest.fixture
def files(tmp_path):
    return [write_transfer(tmp_path / "a", "base", 0.5, 0), write_transfer(tmp_path / "b", "ours", 0.9, 1)]


def test_backbones_of_two_transfers_are_compared_on_the_same_images(files):
    compared = lbgen.compare(files)
    found = {(each.dataset, each.method): each for each in compared.differences}
    assert found.keys() == {(name, method) for name in [*DATASETS, AVERAGE] for method in ("linear", "linear-1shot")}
    first, second = (one.values["dtd", "linear"].value for one in compared.backbones)
    assert (
        found["dtd", "linear"].estimate.value == pytest.approx(second - first) and found["dtd", "linear"].p_value < 1e-3
    )
    assert {name: found[name, "linear"].note for name in DATASETS} == {
        "pets": "exchanges", "dtd": "McNemar", "food": "McNemar",
    }  # fmt: skip
    assert found["food", "linear-1shot"].note == "paired t over draws"
    own = [each for each in compared.differences if each.dataset != AVERAGE]
    expected = stats.false_discovery_control([each.p_value for each in own])
    assert [each.q_value for each in own] == pytest.approx(expected.tolist())
    average = found[AVERAGE, "linear"].estimate
    assert average.value == pytest.approx(np.mean([found[name, "linear"].estimate.value for name in DATASETS]))
    errors = [found[name, "linear"].estimate.standard_error for name in DATASETS]
    assert (average.high - average.low) / (2 * 1.959964) == pytest.approx(np.sqrt(np.square(errors).sum()) / 3)


def changed(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def notes(files):
    return {(each.dataset, each.method): each.note for each in lbgen.compare(files).differences}


def test_what_is_not_of_the_same_images_and_draws_is_not_tested(files):
    changed(files[1], lambda content: content.update(made_with={"config": {"seed": 7}}))
    assert notes(files)["dtd", "linear-1shot"] == "no test: other draws" and notes(files)["dtd", "linear"] == "McNemar"
    changed(files[0], lambda content: content.update(made_with={"config": {"seed": 7}}))
    assert notes(files)["dtd", "linear-1shot"] == "paired t over draws"

    details = "details", "ours", "dtd", "linear"
    changed(files[1], lambda content: inner(content, details).update(identity={"data_sha256": "other"}))
    assert notes(files)["dtd", "linear"] == "no test: other training images"
    changed(files[1], lambda content: inner(content, ("backbones", *details[1:])).update(metric="mean_per_class"))
    assert notes(files)["dtd", "linear"] == "no test: other metrics"
    (files[1].parent / "answers/food-linear.parquet").unlink()
    assert notes(files)["food", "linear"] == "no test: the answers are not there"


def inner(content, names):
    for name in names:
        content = content[name]
    return content


def test_a_value_that_is_not_that_of_its_answers_is_refused(files):
    changed(files[1], lambda content: content["backbones"]["ours"]["dtd"]["linear"].update(value=0.1))
    with pytest.raises(UserError, match=r"ours, dtd linear: its value is 0.1000, that of its answers in .* is 0.[89]"):
        lbgen.compare(files)


def test_a_file_and_its_folder_are_one_and_a_run_of_another_verb_is_no_place(files, tmp_path):
    with pytest.raises(UserError, match="a file is given twice"):
        lbgen.compare([files[0], files[0].parent])
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("seed: 0\n")
    with pytest.raises(UserError, match=r"it holds config.yaml, which lbgen compare did not write"):
        lbgen.compare(files, lbgen.CompareConfig(output=tmp_path / "run"))


def test_the_command_prints_tables_and_writes_what_it_is_asked_to(files, tmp_path, capsys):
    main(["compare", *map(str, files), "--output", str(tmp_path / "out"), "--quiet"])
    shown = capsys.readouterr().out
    assert "linear, %" in shown and "average" in shown and "McNemar" in shown
    stored_json = json.loads((tmp_path / "out/comparison.json").read_text())
    assert stored_json["reference"] == "base" and list(stored_json["backbones"]) == ["base", "ours"]
    assert len(stored_json["differences"]) == 8
    page = (tmp_path / "out/comparison.html").read_text()
    assert "<svg" in page and "ours" in page
    main(["compare", *map(str, files), "--output", str(tmp_path / "out"), "--quiet"])  # its own folder


def test_no_test_without_the_same_images_or_answers(files, tmp_path):
    other = write_transfer(tmp_path / "c", "third", 0.6, 2, few=4)
    table = stored.pq.read_table(tmp_path / "c/answers/dtd-linear.parquet")
    images = ["another"] + table["image"].to_pylist()[1:]
    table = table.set_column(0, "image", [images])
    stored.pq.write_table(table, tmp_path / "c/answers/dtd-linear.parquet")
    plain = json.loads(files[1].read_text())
    del plain["details"]
    files[1].write_text(json.dumps(plain))
    found = {(each.backbone, each.dataset, each.method): each for each in lbgen.compare([*files, other]).differences}
    assert found["third", "dtd", "linear"].note == "no test: other test images"
    assert found["third", "dtd", "linear-1shot"].note == "no test: other draws"
    assert found["third", AVERAGE, "linear"].note == "no test: one of the data sets has none"
    assert found["third", "food", "linear"].note == "McNemar"
    assert found["ours", "food", "linear"].note == "no test: the answers are not there"
    assert math.isnan(found["ours", "food", "linear"].p_value) and found["ours", "food", "linear"].estimate.value > 0


def test_backbones_of_the_same_name_are_told_apart_by_their_folders(tmp_path):
    files = [write_transfer(tmp_path / name, "base", 0.6, seed) for seed, name in enumerate("ab")]
    names = [each.name for each in lbgen.compare(files).backbones]
    assert names == [f"base ({tmp_path / 'a'})", f"base ({tmp_path / 'b'})"]
    with pytest.raises(UserError, match="given twice; name every transfer.json once"):
        lbgen.compare([files[0], files[0]])


def test_no_comparison_is_written_into_a_dataset(files, tmp_path):
    for name in ("dataset.yaml", "plan.json"):
        (tmp_path / name).write_text("")
    before = sorted(tmp_path.rglob("*"))
    for place in (tmp_path, tmp_path / "train"):
        with pytest.raises(UserError, match="it lies in the dataset .*; choose another --output"):
            lbgen.compare(files, lbgen.CompareConfig(output=place))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_received_transfer_cannot_lead_out_of_its_folder(files):
    """Answers elsewhere are not read; what is no transfer.json is refused in one line."""
    content = json.loads(files[1].read_text())
    content["details"]["ours"]["dtd"]["linear"]["answers"] = "answers/../../a/answers/dtd-linear.parquet"
    files[1].write_text(json.dumps(content))
    with pytest.raises(UserError, match="is not the name of a file inside it"):
        lbgen.compare(files)
    files[1].write_text('{"backbones": {"x": {"dtd": {"linear": {"value": "high"}}}}}')
    with pytest.raises(UserError, match=r"backbones.*: .*; give the transfer.json that lbgen transfer wrote"):
        lbgen.compare(files)

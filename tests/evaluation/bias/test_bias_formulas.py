"""The figures of saved answers: hand-made cases that always run, and the published answers where they are."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from command_line import refused_here

import lbgen
from lbgen.cli import main
from lbgen.evaluation.bias.classes import imagenet_ids
from lbgen.evaluation.bias.config import BiasConfig
from lbgen.evaluation.bias.run import BENCHMARKS, bias

KNOWN_ANSWERS = os.environ.get("LBGEN_KNOWN_ANSWERS", "")
"""A folder with cue-conflict/*.csv and focus/*.npz: published answers of networks to every image."""
known = pytest.mark.skipif(not KNOWN_ANSWERS, reason="LBGEN_KNOWN_ANSWERS names no folder")


def scored(path: Path, benchmark: str, output: Path) -> dict:
    """The figures in bias.json."""
    result = bias(BiasConfig(answers=str(path), benchmarks=(benchmark,), output=str(output)))
    (figures,) = json.loads(result.figures.read_text())["backbones"].values()
    return figures[benchmark]


def write_csv(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


# ---- published answers ----


@known
@pytest.mark.parametrize(
    ("network", "shape", "texture", "percent"), [("resnet50", 162, 572, 22.07), ("googlenet", 228, 503, 31.19)]
)
def test_cue_conflict_gives_the_published_shape_bias(network, shape, texture, percent, tmp_path):
    found = scored(Path(KNOWN_ANSWERS, f"cue-conflict/{network}.csv"), "cue-conflict", tmp_path / "out")
    assert (found["images"], found["conflict_images"]) == (1280, 1200)
    assert (found["shape_decisions"], found["texture_decisions"]) == (shape, texture)
    assert round(100 * found["shape_bias"], 2) == percent


@known
def test_focus_gives_the_published_accuracies(tmp_path):
    found = scored(Path(KNOWN_ANSWERS, "focus/resnet50.npz"), "focus", tmp_path / "out")
    assert found["images"] == {"0": 14146, "1": 5974, "2": 674, "3": 21}
    assert [round(100 * found["accuracy"][k], 2) for k in "012"] == [72.44, 44.39, 28.04]


# ---- by hand ----

CUES = [
    ("airplane", "airplane", "airplane1-bicycle2.png"),
    ("bicycle", "airplane", "0002_s5n_dnn_0_airplane_00_airplane1-bicycle2.png"),
    ("bear", "airplane", "airplane2-car1.png"),
    ("dog", "dog", "dog1-dog2.png"),  # no conflict
    ("na", "dog", "dog1-cat2.png"),  # a person who did not answer
]


@pytest.mark.parametrize(
    "rows",
    [
        ["object_response,category,imagename", *map(",".join, CUES)],
        [
            "subj,session,trial,rt,object_response,category,condition,imagename",
            *(f"net,1,{i},NaN,{a},{b},0,{c}" for i, (a, b, c) in enumerate(CUES)),
        ],
        [*map(",".join, CUES)],
        [*(f"net,1,{i},NaN,{a},{b},0,{c}" for i, (a, b, c) in enumerate(CUES))],
        ["object_response, category, imagename", *map(", ".join, CUES)],
    ],
    ids=["three columns", "published columns", "three without a header", "published without a header", "blanks"],
)
def test_cue_conflict_by_hand(rows, tmp_path):
    found = scored(write_csv(tmp_path / "a.csv", *rows), "cue-conflict", tmp_path / "out")
    counts = ("images", "conflict_images", "shape_decisions", "texture_decisions", "shape_bias")
    assert [found[name] for name in counts] == [5, 4, 1, 1, 0.5]
    low, high = found["intervals"]["shape_bias"]
    assert 0 < low < 0.5 < high < 1


def test_without_a_decision_the_shape_bias_is_null(tmp_path, capsys):
    path = write_csv(tmp_path / "a.csv", "bear,airplane,airplane2-car1.png")
    assert scored(path, "cue-conflict", tmp_path / "out")["shape_bias"] is None
    assert "undefined" in capsys.readouterr().out


def test_focus_by_hand_from_npz_and_csv(tmp_path):
    predictions = np.zeros((4, 15), np.uint8)
    predictions[:, 5] = 1  # dogs
    predictions[:, 10:] = [[0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [1, 0, 0, 1, 1], [1, 0, 1, 0, 0]]
    np.savez(tmp_path / "a.npz", predictions=predictions)
    found = scored(tmp_path / "a.npz", "focus", tmp_path / "npz")
    assert found["images"] == {"0": 2, "1": 1, "2": 1, "3": 0}
    assert found["accuracy"] == {"0": 0.5, "1": 1.0, "2": 0.0, "3": None}
    assert found["relative_accuracy"] == {"0": 1.0, "1": 2.0, "2": 0.0, "3": None}
    assert found["top5_accuracy"] == {"0": 1.0, "1": 1.0, "2": 0.0, "3": None}

    dog, cat = "n02085936", "n02123045"
    tail = "category,time,weather,location,uncommon_time,uncommon_weather,uncommon_location,imagename"
    path = write_csv(
        tmp_path / "a.csv",
        f"top1,top5,{tail}",
        f"{dog},{dog} {cat},dog,day,sunny,grass,0,0,0,1.jpg",
        f"{cat},{cat} {dog},dog,day,sunny,grass,0,0,0,2.jpg",
        f"{dog},{dog} {cat},dog,night,sunny,grass,1,0,0,3.jpg",
        f"{cat},{cat} {cat},dog,night,sunny,forest,1,0,1,4.jpg",
    )
    again = scored(path, "focus", tmp_path / "csv")
    assert {name: again[name] for name in ("images", "accuracy", "intervals")} == {
        name: found[name] for name in ("images", "accuracy", "intervals")
    }


def test_imagenet9_by_hand(tmp_path):
    """Two dogs and a fish in each mixed set; a class of none of the nine is wrong."""
    dog, other_dog, fish, none = "n02085620", "n02113978", "n01440764", "n02930766"
    path = write_csv(
        tmp_path / "a.csv",
        "answer,variation,category,imagename",
        f"{dog},mixed_same,00_dog,1",
        f"{other_dog},mixed_same,00_dog,2",
        f"{fish},mixed_same,08_fish,3",
        f"{none},mixed_rand,00_dog,1",
        f"{fish},mixed_rand,00_dog,2",
        f"{fish},mixed_rand,08_fish,3",
    )
    found = scored(path, "imagenet9", tmp_path / "out")
    assert found["accuracy"] == {"mixed_same": 1.0, "mixed_rand": pytest.approx(1 / 3)}
    assert found["bg_gap"] == pytest.approx(2 / 3)


def test_imagenet_c_is_the_published_formula(tmp_path):
    """One image under all corruptions: right at severities 1 and 2; AlexNet's errors add up by hand."""
    from lbgen.evaluation.bias.imagenet_c import ALEXNET

    rows = [
        f"{'n01440764' if severity <= 2 else 'n01443537'},{name},{severity},n01440764,1.JPEG"
        for name in ALEXNET
        for severity in range(1, 6)
    ]
    header = "answer,corruption,severity,category,imagename"
    found = scored(write_csv(tmp_path / "a.csv", header, *rows), "imagenet-c", tmp_path / "out")
    by_hand = [5 * 0.6 / (5 * error) for error in ALEXNET.values()]
    assert found["mean_corruption_error"] == pytest.approx(sum(by_hand) / 15)
    assert found["error"]["fog"] == {"1": 0.0, "2": 0.0, "3": 1.0, "4": 1.0, "5": 1.0}
    fewer = scored(write_csv(tmp_path / "b.csv", header, *rows[:-1]), "imagenet-c", tmp_path / "fewer")
    assert fewer["mean_corruption_error"] is None and len(fewer["corruption_error"]) == 14


def test_objectnet_by_hand(tmp_path):
    """Its bicycle stands for two classes of ImageNet."""
    path = write_csv(
        tmp_path / "a.csv",
        "answer,category,imagename",
        "n02835271,bicycle,1",
        "n03792782,bicycle,2",
        "n04482393,bicycle,3",
    )
    assert scored(path, "objectnet", tmp_path / "out")["accuracy"] == pytest.approx(2 / 3)


def test_the_class_lists_are_of_imagenet_and_as_large_as_published():
    """Against the numbers that the papers state: 16 and 200 classes, 370 in ImageNet-9, 113 in ObjectNet."""
    from lbgen.evaluation.bias import cue_conflict, focus, imagenet9
    from lbgen.evaluation.bias.imagenet_variants import OBJECTNET, A, R

    lists = [*cue_conflict.CATEGORIES.values(), *imagenet9.CLASSES.values(), *OBJECTNET.values(), R, A]
    lists += [category.classes for category in focus.CATEGORIES.values()]
    assert {id for each in lists for id in each} <= set(imagenet_ids())
    assert len(imagenet_ids()) == 1000 and len(cue_conflict.CATEGORIES) == 16 and (len(R), len(A)) == (200, 200)
    assert sum(map(len, imagenet9.CLASSES.values())) == len(imagenet9.CLASS_OF) == 370
    assert len(OBJECTNET) == 113


# ---- the command line ----


def test_answers_are_scored_without_torch_and_the_table_is_printed(tmp_path, capsys):
    path = write_csv(tmp_path / "net.csv", *map(",".join, CUES))
    out = str(tmp_path / "out")
    main(["bias", "--answers", str(path), "--benchmarks", "cue-conflict", "--output", out, "--quiet"])
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["cue-conflict", "net"]
    assert table[1].split()[:3] == ["shape", "bias", "50.00%"]
    main(["bias", "--answers", str(path), "--benchmarks", "cue-conflict", "--output", out, "--quiet"])


@pytest.mark.parametrize(
    ("rows", "benchmark", "message"),
    [
        ([], "cue-conflict", "no column object_response"),
        (["object_response,category,imagename"], "cue-conflict", "it has no answers"),
        (["cat,lion,lion1-cat1.png"], "cue-conflict", "row 1, category: 'lion' is not one of the 16 categories"),
        (["cat,dog,cat1-dog1.png"], "cue-conflict", "row 1, imagename: 'cat1-dog1.png' does not end in dog1-TEXTURE1"),
        (["answer,category", "a,b"], "imagenet-r", "no column imagename"),
        (["answer,category,imagename", "a,b,c,d"], "imagenet-r", "it is not a CSV file that can be read"),
        (["top1,top5"], "focus", "no column category"),
        (
            ["answer,category,category,imagename", "a,b,b,c"],
            "imagenet-r",
            "two columns category; leave one of them out",
        ),
        (["answer,category,imagename", f"a,b,{'x' * 2000}"], "imagenet-r", "a value of imagename has more than 1,024"),
    ],
)
def test_answers_that_do_not_fit_are_refused_in_one_line(rows, benchmark, message, tmp_path, capsys):
    path = write_csv(tmp_path / "a.csv", *rows)
    out = tmp_path / "out"
    told = refused_here(capsys, "bias", "--answers", str(path), "--benchmarks", benchmark, "--output", str(out))
    assert message in told


def test_an_npz_of_another_shape_or_with_objects_is_refused(tmp_path, capsys):
    np.savez(tmp_path / "shape.npz", predictions=np.zeros((3, 14)))
    np.savez(tmp_path / "values.npz", predictions=np.full((3, 15), 2))
    np.savez(tmp_path / "other.npz", answers=np.zeros((3, 15)))
    np.savez(tmp_path / "objects.npz", predictions=np.array([print], dtype=object))
    np.savez(tmp_path / "records.npz", predictions=np.zeros((3, 15), dtype=[("a", "i4")]))
    np.savez(tmp_path / "seconds.npz", predictions=np.zeros((3, 15), dtype="m8[s]"))
    np.savez_compressed(tmp_path / "long.npz", predictions=np.zeros((10**6 + 1, 15), np.uint8))
    for name in ("shape", "values", "other", "objects", "records", "seconds", "long"):
        arguments = ["--benchmarks", "focus", "--output", str(tmp_path / "out")]
        assert "predictions" in refused_here(capsys, "bias", "--answers", str(tmp_path / f"{name}.npz"), *arguments)


def test_another_configuration_in_the_same_folder_is_refused(tmp_path, capsys):
    for name in ("a", "b"):
        write_csv(tmp_path / f"{name}.csv", *map(",".join, CUES))
    scored(tmp_path / "a.csv", "cue-conflict", tmp_path / "out")
    capsys.readouterr()
    arguments = ["--benchmarks", "cue-conflict", "--output", str(tmp_path / "out")]
    told = refused_here(capsys, "bias", "--answers", str(tmp_path / "b.csv"), *arguments)
    assert "out was made with answers " in told


def test_every_benchmark_names_its_page_and_its_columns_are_documented():
    page = Path(__file__).parents[3] / "docs/bias.md"
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.source.startswith("https://")
        assert f"`{', '.join(benchmark.columns)}`" in page.read_text(), name
    assert lbgen.bias is bias

"""Category lists: what is read, what is refused and where it says the mistake stands."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbgen.errors import UserError
from lbgen.runs import atomic
from lbgen.vocabulary.ids import MAX_BYTES, fault, id_from_name
from lbgen.vocabulary.vocabulary import Category, Vocabulary, load_vocabulary

TEXTS = st.text(alphabet=st.characters(codec="utf-8"), max_size=60)


def load(tmp_path: Path, content: str | bytes, file: str = "animals.txt", **options) -> Vocabulary:
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_vocabulary(str(path), **options)


def refusal(tmp_path: Path, content: str | bytes, file: str = "animals.txt", **options) -> str:
    with pytest.raises(UserError) as error:
        load(tmp_path, content, file, **options)
    message = str(error.value).replace(str(tmp_path) + "/", "")
    assert "\n" not in message and message.isprintable()
    return message


def pairs(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    return list(zip(vocabulary.ids, vocabulary.names, strict=True))


# ---- built-in lists ----


def test_imagenet_has_the_usual_ids_in_the_usual_order():
    """Against three well-known classes by number, and WordNet's sorted order."""
    vocabulary = load_vocabulary("imagenet-1k")
    assert len(vocabulary) == 1000 and vocabulary.ids == sorted(set(vocabulary.ids))
    known = {0: ("n01440764", "tench"), 207: ("n02099601", "golden retriever"), 999: ("n15075141", "toilet tissue")}
    for number, pair in known.items():
        assert pairs(vocabulary)[number] == pair


def test_every_plain_imagenet_name_is_a_wordnet_lemma_of_its_id():
    """Against timm's copy of WordNet's lemmas, where timm is installed."""
    info = pytest.importorskip("timm.data.imagenet_info").ImageNetInfo("imagenet-1k")
    plain = load_vocabulary("imagenet-1k", qualify=False)
    assert plain.ids == [info.index_to_label_name(index) for index in range(1000)]
    for category in plain:
        lemmas = [lemma.strip() for lemma in info.label_name_to_description(category.id, detailed=False).split(",")]
        assert category.name in lemmas or (category.name, lemmas) == ("sunglasses", ["sunglass"])


def test_shared_imagenet_names_are_told_apart_unless_the_paper_is_wanted():
    """The pairs were looked up in WordNet; CLIP lower-cases: the Cardigan (a corgi) is a cardigan to it."""
    plain = load_vocabulary("imagenet-1k", qualify=False)
    shared = {name for name, count in Counter(name.lower() for name in plain.names).items() if count > 1}
    assert shared == {"crane", "maillot", "missile", "sunglasses", "cardigan"}
    qualified = load_vocabulary("imagenet-1k")
    assert len({name.lower() for name in qualified.names}) == 1000
    changed = [(a.name, b.name) for a, b in zip(plain, qualified, strict=True) if a != b]
    assert len(changed) == 10 and all(after.startswith(before + " ") for before, after in changed)
    assert ("crane", "crane bird") in changed and ("crane", "crane machine") in changed


def test_the_lbgen_names_are_those_of_the_released_code():
    """Written as in its classnames.txt, "id name" a line, they have that file's git object id (commit cebd517)."""
    plain = load_vocabulary("imagenet-1k-lbgen", qualify=False)
    content = "".join(f"{id} {name}\n" for id, name in pairs(plain)).encode()
    git_object = hashlib.sha1(b"blob %d\0" % len(content) + content)
    assert git_object.hexdigest() == "91710b143a9ea19996f66d1b92af859f99e96e8e"
    usual = load_vocabulary("imagenet-1k", qualify=False)
    assert plain.ids == usual.ids
    assert sum(theirs != ours for theirs, ours in zip(plain.names, usual.names, strict=True)) == 361


def test_names_that_the_lbgen_list_shares_are_told_apart_and_no_others():
    """It has "crane bird" and "construction crane", so that crane is not shared there; missile and sunglasses are."""
    plain, qualified = (load_vocabulary("imagenet-1k-lbgen", qualify) for qualify in (False, True))
    changed = [(a.name, b.name) for a, b in zip(plain, qualified, strict=True) if a != b]
    assert changed == [
        ("missile", "missile rocket"),
        ("missile", "missile projectile"),
        ("sunglasses", "sunglasses lens"),
        ("sunglasses", "sunglasses eyewear"),
    ]
    assert len({name.lower() for name in qualified.names}) == 1000


def test_microworld_is_built_in():
    from lbgen.microworld.world import CATEGORIES

    assert load_vocabulary("microworld").names == list(CATEGORIES)


# ---- text files ----


def test_names_alone_are_never_split(tmp_path):
    vocabulary = load(tmp_path, "polar bear\nsea lion\ncat\nT-shirt dress\n3d printer\n")
    assert vocabulary.names == ["polar bear", "sea lion", "cat", "T-shirt dress", "3d printer"]
    assert vocabulary.ids == ["polar_bear", "sea_lion", "cat", "T-shirt_dress", "3d_printer"]


@pytest.mark.parametrize(
    "content",
    [
        "n02123045 tabby cat\nn02129604 tiger\n",
        "n02123045\ttabby cat\nn02129604\ttiger\n",
        "\ufeffn02123045   tabby  cat  \r\n\r\n# a comment\r\n   n02129604 tiger",
        "n02123045 tabby cat\rn02129604 tiger\r",
    ],
)
def test_ids_and_names(tmp_path, content):
    assert pairs(load(tmp_path, content)) == [("n02123045", "tabby cat"), ("n02129604", "tiger")]


def test_ids_that_are_no_wordnet_ids(tmp_path):
    assert pairs(load(tmp_path, "cat_01 tabby cat\ncat_02 lion\n")) == [("cat_01", "tabby cat"), ("cat_02", "lion")]
    assert pairs(load(tmp_path, "polar\tice bear\nsea\tsea lion\n")) == [("polar", "ice bear"), ("sea", "sea lion")]


def test_sources_are_file_and_line(tmp_path):
    vocabulary = load(tmp_path, "# pets\n\ncat\ndog\n")
    assert [category.source for category in vocabulary] == [f"{tmp_path}/animals.txt, line {n}" for n in (3, 4)]


def test_bare_imagenet_ids_get_their_names(tmp_path):
    vocabulary = load(tmp_path, "n02012849\nn01440764\n")
    assert pairs(vocabulary) == [("n02012849", "crane bird"), ("n01440764", "tench")]
    assert load(tmp_path, "n02012849\nn01440764\n", qualify=False).names == ["crane", "tench"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "animals.txt: no categories in it"),
        ("\n# nothing\n  \n", "animals.txt: no categories in it"),
        ("cat\n", 'animals.txt, line 1: "cat" is the only category; add another one'),
        ("cat\ndog\ncat\n", 'animals.txt, line 3: id "cat" was used before ("cat", animals.txt, line 1); remove'),
        ("c_1 cat\nC_1 dog\n", 'animals.txt, line 2: id "C_1" was used before ("c_1", animals.txt, line 1)'),
        ("n1 crane\nn2 dog\nn3 Crane\n", 'line 3: the name "Crane" is also that of id "n1" (animals.txt, line 1); add'),
        ("n1 cat\nn2 dog\npolar bear\n", 'line 3: "polar bear" is not an id and a name, unlike other lines; separate'),
        ("n1\tcat\nn2 dog\n", "animals.txt, line 2: no TAB between id and name"),
        ("n1\tcat\n\tdog\n", 'animals.txt, line 2: id "" is empty'),
        ("n1\tcat\nn2\t \n", 'animals.txt, line 2: the name of id "n2" is empty'),
        ("cat\n" + "very " * 75 + "long\n", "line 2: "),
        ("n1 cat\nn2 " + "very " * 75 + "long\n", "more than the 77 tokens CLIP reads; shorten it"),
        (b"cat\ndog\nb\xe4r\n", "animals.txt, line 3: not UTF-8 text; save the file as UTF-8"),
        ("cat\ndog\n".encode("utf-16"), "animals.txt, line 1: not UTF-8 text"),
        (b"n1 cat\nn\x00 dog\n", "animals.txt, line 2: "),
        (b"cat\nd\x00og\n", "animals.txt, line 2: "),
        (b"cat\nd\x1bog\n", "holds a control character; remove it"),
    ],
)
def test_refused_with_line_and_remedy(tmp_path, content, expected):
    assert expected in refusal(tmp_path, content)


UNSAFE = [
    "../x",
    "/x",
    "a/b",
    "a\\b",
    "..",
    ".",
    "CON",
    "nul.txt",
    "Com1",
    "LPT¹",
    "x.",
    ".x",
    "__x",
    "a:b",
    "a*b",
    "a\x7f",
    "a\u202eb",
]


@pytest.mark.parametrize("unsafe", [*UNSAFE, "a\0b", "a\u202eb", "x" * (MAX_BYTES + 1)])
@pytest.mark.parametrize("form", ["spaced", "tab", "csv", "json", "json object"])
def test_ids_that_could_leave_a_folder_are_refused(tmp_path, unsafe, form):
    content, file = {
        "spaced": (f"n1 fish\n{unsafe} cat\n", "a.txt"),
        "tab": (f"n1\tfish\n{unsafe}\tcat\n", "a.txt"),
        "csv": (f"id,name\nn1,fish\n{unsafe},cat\n", "a.csv"),
        "json": (json.dumps([{"id": "n1", "name": "fish"}, {"id": unsafe, "name": "cat"}]), "a.json"),
        "json object": (json.dumps({"n1": "fish", unsafe: "cat"}), "a.json"),
    }[form]
    message = refusal(tmp_path, content, file)
    place = "item 2" if "json" in form else "line 3" if form == "csv" else "line 2"
    assert message.startswith(f'{file}, {place}: id "')


@pytest.mark.parametrize("unsafe", ["../x", "/x", "\\x", "./x y", "..", "CON", "nul"])
def test_names_that_read_like_paths_or_devices_are_refused_as_ids(tmp_path, unsafe):
    assert refusal(tmp_path, f"cat\n{unsafe}\n").startswith("animals.txt, line 2: id ")


def test_names_may_hold_anything_else_and_get_safe_ids(tmp_path):
    names = ['9" nail', "AC/DC poster", "🐈 cat", "🐕", "קטן", "crème brûlée", "creme brulee", "what?", "a: b", "👩‍🚀"]
    vocabulary = load(tmp_path, "\n".join(names))
    assert vocabulary.names == names
    assert vocabulary.ids[5].startswith("creme_brulee-") and vocabulary.ids[6] == "creme_brulee"
    assert all(category_id.isascii() for category_id in vocabulary.ids)


def test_identical_names_are_kept_on_request(tmp_path):
    content = "n1 crane\nn2 crane\n"
    assert load(tmp_path, content, qualify=False).names == ["crane", "crane"]
    assert "--no-qualify-names" in refusal(tmp_path, content)


# ---- ids ----


@given(TEXTS)
def test_an_id_without_fault_stays_one_folder_below_the_dataset(text):
    """Against pathlib's own idea of both systems' paths."""
    if fault(text) is None:
        assert (Path("d") / text).resolve().parent == Path("d").resolve()
        assert PureWindowsPath("d", text).parts == ("d", text)
        assert len(text.encode()) <= MAX_BYTES


@given(TEXTS, TEXTS)
def test_ids_made_from_names_are_fit_and_distinct(name, other):
    name, other = " ".join(name.split()), " ".join(other.split())
    assert fault(id_from_name(name)) is None
    if name != other.replace("_", " ") and other != name.replace("_", " "):
        assert id_from_name(name) == id_from_name(name)
        assert (id_from_name(name) == id_from_name(other)) == (name == other)


@pytest.mark.parametrize("name", ["CON", "aux", "__x", "__", "a" * 300, "what? " * 60, "é" * 300])
def test_ids_of_device_names_and_long_names_are_fit(name):
    assert fault(id_from_name(name)) is None


@settings(deadline=None)  # it waits for the disk
@given(content=st.binary(max_size=80))
def test_any_bytes_are_read_or_refused_in_one_line(content, tmp_path_factory):
    for file in ("a.txt", "a.csv", "a.json"):
        path = tmp_path_factory.getbasetemp() / file
        path.write_bytes(content)
        try:
            vocabulary = load_vocabulary(str(path))
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert len(vocabulary) >= 2 and not any(map(fault, vocabulary.ids))


# ---- kinds of files ----


FISH = [("n1", "night owl"), ("n2", "dog")]


@pytest.mark.parametrize(
    ("content", "file"),
    [
        ('{"id": "n1", "name": "night owl"}\n\n{"name": "dog", "id": "n2", "more": [1]}\n', "a.jsonl"),
        ('{"id": "n1", "name": "night owl"}\n{"id": "n2", "name": "dog"}', "a.NDJSON"),
        ("id\tname\nn1\tnight owl\nn2\tdog\n", "a.tsv"),
        ("Name\tnote\tID\nnight owl\tx\tn1\ndog\ty\tn2\n", "a.tsv"),
        ("n1\tnight owl\n# dogs\nn2\tdog\n", "a.tsv"),
        ("n1\tnight owl\nn2\tdog\n", "a.tab"),
        ("n1\tnight owl\nn2\tdog\n", "names.list"),
        ("n1 night owl\nn2 dog\n", "names"),
    ],
)
def test_each_kind_of_file_gives_the_same_categories(tmp_path, content, file):
    assert pairs(load(tmp_path, content, file)) == FISH


@pytest.mark.parametrize("file", ["a.jsonl", "a.ndjson"])
def test_json_lines_may_be_mere_names(tmp_path, file):
    assert pairs(load(tmp_path, '"night owl"\n"dog"\n', file)) == [("night_owl", "night owl"), ("dog", "dog")]


def test_a_tab_separated_file_of_names_alone(tmp_path):
    assert load(tmp_path, 'name\n7" disk\ndog\n', "a.tsv").names == ['7" disk', "dog"]


@pytest.mark.parametrize(
    ("content", "file", "expected"),
    [
        ('{"id": "n1", "name": "fish"}\n[1]\n', "a.jsonl", "a.jsonl, line 2: id and name must be text"),
        ('{"id": "n1", "name": "fish"}\n{"id": \n', "a.jsonl", "a.jsonl, line 2: not valid JSON"),
        ('{"id": "n1"}\n{"id": "n2"}\n', "a.jsonl", "a.jsonl, line 1: id and name must be text"),
        ("[" * 100_000, "a.jsonl", "a.jsonl, line 1: not valid JSON"),
        ("[" * 100_000, "a.json", "a.json, line 1: not valid JSON"),
        ("class_id\tclass_name\nn1\tfish\nn2\tdog\n", "a.tsv", "a.tsv, line 1: the header needs one `name` column"),
        ("id\tlabel\nn1\tfish\nn2\tdog\n", "a.txt", "a.txt, line 1: the header needs one `name` column"),
        ("id\tname\nn1\tfish\nn2\n", "a.tsv", "a.tsv, line 3: 1 columns where the header has 2"),
        ('{"id": "n1", "name": "fish"}\n{"id": "n2", "name": "dog"}\n', "a.txt", "line 1: it holds JSON; call the"),
        ('[\n"fish",\n"dog"\n]\n', "a.txt", "a.txt: it holds JSON; call the file .json"),
        ("id,name\nn1,fish\nn2,dog\n", "a.txt", "a.txt, line 1: it is the header of a table; call the file .csv"),
        ("wnid class_name\nn_1 fish\nn_2 dog\n", "a.txt", "a.txt, line 1: it is the header of a table"),
        ("- fish\n- dog\n", "a.yaml", "a.yaml: lbgen does not read vocabularies of type .yaml; give a .txt"),
        ("fish\ndog\n", "a.xlsx", "a.xlsx: lbgen does not read vocabularies of type .xlsx; give a .txt"),
        (b"PAR1", "a.parquet", "a.parquet: lbgen does not read vocabularies of type .parquet"),
        (b"\x1f\x8b", "a.json.gz", "a.json.gz: lbgen does not read vocabularies of type .gz"),
    ],
)
def test_no_file_is_read_as_what_it_is_not(tmp_path, content, file, expected):
    assert expected in refusal(tmp_path, content, file)


def test_a_text_list_with_a_header_is_a_table(tmp_path):
    assert pairs(load(tmp_path, "id\tname\nn1\tnight owl\nn2\tdog\n", "a.txt")) == FISH


# ---- numbered lists ----


@pytest.mark.parametrize(
    "form",
    [
        "{}, {}",
        "{},{}",
        "{}; {}",
        "{};{}",
        "{}: {}",
        "{}. {}",
        "{}) {}",
        "({}) {}",
        "[{}] {}",
        "{} {}",
        "{}|{}",
        "{} | {}",
        "{} - {}",
    ],
)
@pytest.mark.parametrize("ids", [("0", "1", "2"), ("1", "2", "3"), ("n01", "n02", "x_3")])
def test_a_numbered_list_has_the_numbers_as_ids(tmp_path, form, ids):
    names = ("tench", "great white shark, or pointer", "3d printer")
    content = "\n".join(form.format(*pair) for pair in zip(ids, names, strict=True))
    assert pairs(load(tmp_path, content)) == list(zip(ids, names, strict=True))


def test_commas_in_names_are_no_numbering(tmp_path):
    """Chemists and engineers number too, but not their lines."""
    names = ["1,2-dichloroethane", "2,4-D", "3,4-DCPA", "3.5-inch disk", "cat"]
    assert load(tmp_path, "\n".join(names)).names == names
    names = ["Boeing 747, cargo", "F-16, landing", "cat"]
    assert load(tmp_path, "\n".join(names)).names == names


def test_a_python_dictionary_is_no_numbered_list(tmp_path):
    """Its quotes would be drawn."""
    assert "line 1: id" in refusal(tmp_path, "0: 'tench, Tinca tinca',\n1: 'goldfish',\n")
    assert load(tmp_path, '0: 9" nail\n1: dog\n').names == ['9" nail', "dog"]


def test_a_list_numbered_in_part_is_refused(tmp_path):
    message = refusal(tmp_path, "0, tench\n1, shark\npolar bear\n")
    assert message.startswith(
        'animals.txt, line 1: "0," is not an id; number every line in the same way, or separate id'
    )


# ---- underscores ----


@pytest.mark.parametrize(
    ("content", "file", "ids"),
    [
        ("apple_pie\nhot_dog\n", "a.txt", ["apple_pie", "hot_dog"]),
        ("n1 apple_pie\nn2 hot_dog\n", "a.txt", ["n1", "n2"]),
        ("n1\tapple_pie\nn2\thot_dog\n", "a.txt", ["n1", "n2"]),
        ("name\napple_pie\nhot_dog\n", "a.csv", ["apple_pie", "hot_dog"]),
        ('["apple_pie", "hot_dog"]', "a.json", ["apple_pie", "hot_dog"]),
        ('{"a": "apple_pie", "b": "hot_dog"}', "a.json", ["a", "b"]),
    ],
)
def test_an_underscore_in_a_name_is_a_space_wherever_it_was_written(tmp_path, content, file, ids):
    """As in an ImageFolder, whose folders cannot say it otherwise; ids keep theirs."""
    assert pairs(load(tmp_path, content, file)) == list(zip(ids, ("apple pie", "hot dog"), strict=True))
    for name in ("apple_pie", "hot_dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    assert load_vocabulary(str(tmp_path / "photos")).names == ["apple pie", "hot dog"]


def test_names_that_differ_in_an_underscore_alone_are_one_name(tmp_path):
    assert 'the name "apple pie" is also that of id "n1"' in refusal(tmp_path, "n1\tapple pie\nn2\tapple_pie\n")


# ---- csv ----


def test_csv_with_ids_or_names_and_other_columns(tmp_path):
    expected = [("n1", "cat, tabby"), ("n2", "dog")]
    assert pairs(load(tmp_path, '\ufeffid,name\nn1,"cat, tabby"\n\nn2,dog\n', "a.csv")) == expected
    assert pairs(load(tmp_path, 'Name, note ,ID\n"cat, tabby",x,n1\ndog,y,n2\n', "a.CSV")) == expected
    assert load(tmp_path, "name\npolar bear\n3d printer\n", "a.csv").ids == ["polar_bear", "3d_printer"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "a.csv: no categories"),
        ("id,name\n", "a.csv: no categories"),
        ("n1,cat\nn2,dog\n", "a.csv, line 1: the header needs one `name` column"),
        ("id,name\nn1,cat\nn2,dog,black\n", "a.csv, line 3: 3 columns where the header has 2; quote names with commas"),
        ("id,name\nn1,cat\nn2\n", "a.csv, line 3: 1 columns"),
        ("id,name\nn1,cat\nn1,dog\n", 'a.csv, line 3: id "n1" was used before'),
        ("id,name\nn1,cat\nn2,\n", 'a.csv, line 3: the name of id "n2" is empty'),
        ('id,name\nn1,cat\nn2,"dog\n', "not valid CSV"),
        (b"id,name\nn1,cat\nn2,b\xe4r\n", "a.csv, line 3: not UTF-8"),
    ],
)
def test_csv_refused(tmp_path, content, expected):
    assert expected in refusal(tmp_path, content, "a.csv")


# ---- json ----


@pytest.mark.parametrize(
    "content", [["cat", "dog"], [{"name": "cat"}, {"id": "dog", "name": "dog"}], {"cat": "cat", "dog": "dog"}]
)
def test_json_forms(tmp_path, content):
    assert pairs(load(tmp_path, json.dumps(content), "a.json")) == [("cat", "cat"), ("dog", "dog")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "a.json, line 1: not valid JSON"),
        ('["cat",\n"dog",]', "a.json, line 2: not valid JSON"),
        ("[]", "a.json: no categories"),
        ('"cat"', "a.json: expected"),
        ('["cat", 3]', "a.json, item 2: id and name must be text"),
        ('[{"id": "a"}, "dog"]', "a.json, item 1: id and name must be text"),
        ('{"a": "cat", "b": ["dog"]}', "a.json, item 2: id and name must be text"),
        ('{"a": "cat", "a": "dog"}', 'a.json, item 2: id "a" was used before'),
        ('["cat", "\\ud800"]', "holds a control character"),
        ('["cat", ""]', "a.json, item 2: the name of id"),
    ],
)
def test_json_refused(tmp_path, content, expected):
    assert expected in refusal(tmp_path, content, "a.json")


# ---- ImageFolder ----


def test_image_folder_with_and_without_train(tmp_path):
    for name in ("polar_bear", "cat", ".cache", "n02012849"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "split" / "train" / name).mkdir(parents=True)
        (tmp_path / "split" / "val" / name).mkdir(parents=True)
    (tmp_path / "photos" / "readme.txt").touch()
    expected = [("cat", "cat"), ("n02012849", "crane bird"), ("polar_bear", "polar bear")]
    assert pairs(load_vocabulary(str(tmp_path / "photos"))) == expected
    assert pairs(load_vocabulary(str(tmp_path / "split"))) == expected


def test_a_category_called_train_is_a_category(tmp_path):
    for name in ("train", "bus"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    assert load_vocabulary(str(tmp_path)).ids == ["bus", "train"]


def test_folders_that_do_not_do_are_refused(tmp_path):
    with pytest.raises(UserError, match="no categories in it; a folder needs one folder per category"):
        load_vocabulary(str(tmp_path))
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match="the only category"):
        load_vocabulary(str(tmp_path))
    (tmp_path / "Cat").mkdir(exist_ok=True)
    if len(list(tmp_path.iterdir())) == 2:  # a file system that tells them apart
        with pytest.raises(UserError, match="upper and lower case"):
            load_vocabulary(str(tmp_path))


def test_an_unknown_vocabulary_names_the_built_in_ones():
    names = "imagenet-1k, imagenet-1k-lbgen, microworld"
    with pytest.raises(UserError, match=f"no such file or folder, nor a built-in list .{names}."):
        load_vocabulary("animals")


# ---- the vocabulary itself ----


def vocabulary_of(*names: str) -> Vocabulary:
    return Vocabulary(tuple(Category(f"c{n}", name, f"list, line {n}") for n, name in enumerate(names, 1)))


def test_a_vocabulary_is_a_sequence():
    vocabulary = vocabulary_of("cat", "dog", "emu")
    assert len(vocabulary) == 3 and vocabulary[-1].name == "emu" and [c.id for c in vocabulary] == vocabulary.ids
    assert vocabulary[:2] == vocabulary.categories[:2]


def test_texts_put_the_name_in_as_it_is():
    vocabulary = vocabulary_of("{cat}", "dog {name} {0}")
    assert vocabulary.texts("a {name}, {b}") == ["a {cat}, {b}", "a dog {name} {0}, {b}"]
    with pytest.raises(UserError, match="has no {name}"):
        vocabulary.texts("a photo")


def test_check_tokens_refuses_by_source():
    """The counter here counts words, so the limit can be counted by eye."""
    vocabulary = vocabulary_of("cat", "very long dog")
    vocabulary.check_tokens(lambda text: len(text.split()), 4, "a {name}")
    with pytest.raises(
        UserError, match='list, line 2: "a very long dog" is 4 tokens long, the text encoder reads 3; sh'
    ):
        vocabulary.check_tokens(lambda text: len(text.split()), 3, "a {name}")


def test_seventy_five_words_may_fit_and_seventy_six_cannot():
    vocabulary_of("cat", "a " * 75)
    with pytest.raises(UserError, match="77 tokens"):
        vocabulary_of("cat", "a " * 76)


def test_a_device_is_not_read_and_a_pipe_without_a_writer_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "names.txt")
    messages = {tmp_path / "names.txt": "nobody writes to this pipe", Path("/dev/zero"): "it is not a regular file"}
    for path, message in messages.items():
        with pytest.raises(UserError, match=f"{path}: {message}; give a "):
            load_vocabulary(str(path))
    monkeypatch.setattr(atomic, "PIPE_SECONDS", 0.2)
    writer = os.open(tmp_path / "names.txt", os.O_RDWR)  # it has the pipe open, and never writes
    with pytest.raises(UserError, match=r"nothing came from this pipe in 0\.2 seconds"):
        load_vocabulary(str(tmp_path / "names.txt"))
    os.close(writer)


def test_what_a_command_prints_is_a_vocabulary(tmp_path):
    """As bash passes `<(...)`: a slow command, read twice as a run does; one without end is cut off."""
    script = "from lbgen import load_vocabulary; import sys; a, b = (load_vocabulary(sys.argv[1]) for _ in 'ab'); "
    script += "assert a == b; print(a.names)"
    command = f'{sys.executable} -c "$0" <(echo polar bear; sleep 0.3; echo red_fox)'
    done = subprocess.run(["bash", "-c", command, script], capture_output=True, text=True)
    assert done.stdout == "['polar bear', 'red fox']\n", done.stderr
    with subprocess.Popen(["yes", "cat"], stdout=subprocess.PIPE) as endless:
        with pytest.raises(UserError, match="more than 1,000,000 bytes came from this pipe"):
            atomic.read_pipe(Path(f"/dev/fd/{endless.stdout.fileno()}"), 10**6)
        endless.kill()

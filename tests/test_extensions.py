"""Loss terms, quality scorers, language spaces and families from elsewhere: from Python, and from a distribution.

The distribution is one as pip leaves it: a module and a dist-info folder with entry points, on sys.path.
"""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from alignment_runs import lines
from PIL import Image

import lbgen
from lbgen.alignment import run
from lbgen.audit.run import audit
from lbgen.configuration import extensions
from lbgen.configuration.saved import plain
from lbgen.errors import Interrupted, UserError
from lbgen.models.checkpoints.known import PIPELINES
from lbgen.models.families import FAMILIES
from lbgen.models.generator import load_generator
from lbgen.models.quality import load_quality
from lbgen.models.semantics import SemanticSpace, load_semantics

MODULE = '''
"""A term, a scorer, a language space and a family, each as small as it can be."""

import hashlib

import torch
import torch.nn.functional as F

from lbgen.models.families.stable_diffusion import StableDiffusion
from lbgen.models.semantics import SemanticSpace


def darkness(batch):
    return batch.images.mean()


class Contrast:
    def __init__(self, space):
        self.space = space

    def score(self, images, features=None):
        return 1 + 4 * (2 * images.flatten(1).std(dim=1)).clamp(0, 1)


class Thumbnails(SemanticSpace):
    """An image's features are its 2 x 2 thumbnail; those of a text are drawn by its hash."""

    dimension, token_limit, logit_scale, image_side = 12, 50, 10.0, 8

    def __init__(self, device, dtype):
        self.device, self.dtype = device, dtype

    def embed_texts(self, texts, *, normalize=True):
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in texts]
        drawn = torch.stack([torch.randn(12, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        return F.normalize(drawn, dim=-1) if normalize else drawn

    def embed_images(self, images, *, normalize=True):
        features = F.adaptive_avg_pool2d(images.float(), 2).flatten(1) - 0.5
        return F.normalize(features, dim=-1) if normalize else features

    def tokens(self, texts):
        return [tuple(text.encode()) for text in texts]


class Mirrored(StableDiffusion):
    """Stable Diffusion whose images are drawn mirrored."""

    title = "mirrored Stable Diffusion"

    def to_decoder(self, latents):
        return super().to_decoder(latents.flip(-1))
'''
POINTS = """
[lbgen.terms]
darkness = shades:darkness
[lbgen.quality]
contrast = shades:Contrast
broken = shades:nothing
[lbgen.semantics]
thumbnails = shades:Thumbnails
[lbgen.families]
MirroredPipeline = shades:Mirrored
"""


def install(folder, name: str, points: str) -> None:
    """What pip leaves of a distribution without files."""
    information = folder / f"{name}-1.5.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    (information / "entry_points.txt").write_text(points)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The distribution `shades`, in a folder of sys.path."""
    site = tmp_path / "site"
    install(site, "shades", POINTS)
    (site / "shades.py").write_text(MODULE)
    monkeypatch.syspath_prepend(site)
    yield site
    import sys

    sys.modules.pop("shades", None)


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch):
    monkeypatch.setattr(extensions, "REGISTERED", {group: {} for group in extensions.REGISTERED})


@pytest.fixture(scope="module")
def mirrored_folder(tiny_sd_folder, tmp_path_factory):
    """The miniature as a checkpoint of another family."""
    folder = shutil.copytree(tiny_sd_folder, tmp_path_factory.mktemp("mirrored") / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "MirroredPipeline"}))
    return folder


def test_a_distribution_that_is_installed_meanwhile_is_found(tmp_path, monkeypatch):
    """In a folder that was looked through before, as by pip while a notebook is open."""
    monkeypatch.syspath_prepend(tmp_path)
    assert not extensions.is_extension("terms", "lightness", ())
    install(tmp_path, "later", "[lbgen.terms]\nlightness = later:lightness\n")
    assert extensions.is_extension("terms", "lightness", ())
    assert extensions.origin("terms", "lightness", ()) == "later 1.5"


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- from a distribution ----


def test_a_run_uses_what_a_distribution_offers_and_records_it(installed, fresh, mirrored_folder, capsys):
    """The logged loss is the weighted sum of the logged terms; 0.1 and 0.5 are the weights of the config."""
    config = fresh(
        generator=str(mirrored_folder), semantics="thumbnails", quality="contrast", extra_terms=("darkness=.5",)
    )
    lbgen.align(config)
    assert re.search(r"^extra terms +darkness=0\.5$", capsys.readouterr().out, re.MULTILINE)
    start, *updates = lines(config.folder / "metrics.jsonl")
    assert start["gradient_norms"]["darkness"] > 0 and start["gradient_norms"]["quality"] > 0
    for line in updates:
        total = line["entire"] + line["individual"] + 0.1 * line["quality"] + 0.5 * line["darkness"]
        assert line["loss"] == pytest.approx(total, rel=1e-5) and 0 < line["darkness"] < 1
    identity = json.loads((config.folder / "provenance.json").read_text())
    assert {identity[f"{name}_sha256"] for name in ("semantics", "quality", "family")} == {"shades 1.5"}
    assert "shades 1.5" in identity["versions"] and plain(config)["extra_terms"] == ["darkness=0.5"]


def test_a_family_of_a_distribution_makes_the_images(installed, tiny_sd_folder, mirrored_folder):
    """Against the built-in family's decoder, given mirrored latents."""
    own, mirrored = load_generator(str(tiny_sd_folder)), load_generator(str(mirrored_folder))
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(mirrored.decode(latents), own.decode(latents.flip(-1)))


def test_the_registry_names_every_family_of_lbgen():
    """It is read without torch, which the families need."""
    assert list(PIPELINES) == list(FAMILIES)


def test_an_audit_reads_images_in_the_space_of_a_distribution_and_names_it(installed, tmp_path):
    for label in ("fish", "key"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(3):
            noise = torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(number)).byte()
            Image.fromarray(noise.numpy()).save(tmp_path / "data" / label / f"{number}.png")
    result = audit(tmp_path / "data", lbgen.AuditConfig(output=tmp_path / "out", semantics="thumbnails"))
    assert "thumbnails" in result.page.read_text()


def test_a_dataset_is_screened_in_the_space_of_a_distribution(installed, config, tmp_path):
    settings = {"screen": ("label",), "screen_semantics": "thumbnails", "max_attempts": 1, "images_per_category": 1}
    made = replace(config, output=tmp_path / "data", **settings)
    assert lbgen.generate(made).images == 3
    assert "semantics_sha256: shades 1.5" in (tmp_path / "data/dataset.yaml").read_text()
    assert lbgen.verify(tmp_path / "data").damaged == ()


def test_what_is_registered_in_one_process_is_refused_where_others_would_need_it(config, mirrored_folder, tmp_path):
    lbgen.register("families", "MirroredPipeline", object)
    many = replace(config, output=tmp_path / "data", generator=str(mirrored_folder), workers=2)
    assert refusal(lbgen.generate, many).startswith("MirroredPipeline was registered in families of this process, and")
    assert not (tmp_path / "data/dataset.yaml").exists()


def test_a_name_that_lbgen_has_stays_its_own(installed, tiny_clip_folder, monkeypatch):
    install(installed, "imposter", "[lbgen.quality]\nantonyms = shades:Contrast\n")
    space = load_semantics(str(tiny_clip_folder))
    assert type(load_quality("antonyms", space)).__module__ == "lbgen.models.quality.antonyms"


def test_a_distribution_that_does_not_load_and_two_of_one_name_are_refused(installed, tiny_clip_folder):
    space = load_semantics(str(tiny_clip_folder))
    message = refusal(load_quality, "broken", space)
    assert message.startswith('shades 1.5, entry point "broken" of lbgen.quality: it cannot be loaded (AttributeError')
    install(installed, "hues", "[lbgen.quality]\ncontrast = hues:Contrast\n")
    assert refusal(load_quality, "contrast", space).startswith("contrast: hues 1.5 and shades 1.5 both define it in lb")
    known = "choose antonyms, broken, contrast, q-align, q-align-int8, q-align-nf4 (the last 3 also"
    assert known in refusal(load_quality, "clarity", space)


# ---- terms from Python ----


def bright(batch: lbgen.Batch) -> torch.Tensor:
    return 1 - batch.images.mean()


def test_a_term_from_python_trains_the_adapter_as_its_gradient_says(fresh):
    """Images of a run that is trained for brightness alone are brighter than those of the base model."""
    seen = []

    def watched(batch: lbgen.Batch) -> torch.Tensor:
        seen.append(batch.images.mean().item())
        return bright(batch)

    config = fresh(
        entire_weight=0, individual_weight=0, quality="none", extra_terms=("brightness=2",), max_steps=6,
        evaluate_every=0, learning_rate=5e-2, max_grad_norm=10.0, differentiated_steps=3,
    )  # fmt: skip
    lbgen.align(config, extra_terms={"brightness": (2, watched)})
    updates = lines(config.folder / "metrics.jsonl")[1:]
    assert [line["brightness"] for line in updates] == pytest.approx([1 - value for value in seen[1:]], abs=1e-6)
    assert [line["loss"] for line in updates] == pytest.approx([2 * line["brightness"] for line in updates], rel=1e-6)
    before, after = (np.asarray(Image.open(path)).mean() for path in sorted(config.folder.glob("samples/*.png")))
    assert after > before + 0.5  # of 255; both grids show the same noise


def test_an_interrupted_run_goes_on_with_the_same_terms_and_weights_only(fresh, monkeypatch):
    config, term = fresh(max_steps=3), {"brightness": (0.5, bright)}
    monkeypatch.setattr("lbgen.alignment.loop.received_signal", lambda accelerator, signals: 15)
    with pytest.raises(Interrupted):
        lbgen.align(config, extra_terms=term)
    monkeypatch.undo()
    assert refusal(lbgen.align, config).endswith(
        "this run asks for empty; choose another --output or give --extra-terms brightness=0.5"
    )
    for other in ({"brightness": (0.4, bright)}, {"light": (0.5, bright)}, {**term, "light": (0, bright)}):
        message = refusal(lbgen.align, config, extra_terms=other)
        assert message.startswith(f"{config.output} was made with extra_terms brightness=0.5, this run asks for ")
    assert lbgen.align(config, extra_terms=term).steps == 3
    assert [line["step"] for line in lines(config.folder / "metrics.jsonl")] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda batch: batch.images.mean().detach(),
            "--extra-terms own=0.5: the own term's gradient on the adapter is",
        ),
        (
            lambda batch: batch.features.mean(dim=1),
            "--extra-terms own: its function returns a tensor of shape (2,); it must",
        ),
        (lambda batch: 0.5, "--extra-terms own: its function returns float; it must return a scalar tensor"),
        (
            lambda batch: batch.images.mean() / 0,
            "--extra-terms own=0.5: its gradient on the adapter is",
        ),
    ],
)
def test_a_term_is_checked_at_the_start_as_the_built_in_ones_are(fresh, function, message):
    config = fresh()
    assert refusal(lbgen.align, config, extra_terms={"own": (0.5, function)}).startswith(message)
    assert not (config.folder / "metrics.jsonl").exists()


def test_what_a_term_raises_names_it(fresh):
    with pytest.raises(KeyError, match="inside") as caught:
        lbgen.align(fresh(), extra_terms={"own": (0.5, lambda batch: {}["inside"])})
    assert caught.value.__notes__ == ["raised by the function of --extra-terms own"]


@pytest.mark.parametrize("terms", [{"own": len}, {"own": (len, 1.0)}, {"own": (1.0, len, 2)}, [("own", 1.0, len)], 5])
def test_terms_of_another_form_are_refused_by_the_right_one(fresh, terms):
    config = fresh()
    assert '{"NAME": (WEIGHT, FUNCTION)}' in refusal(lbgen.align, config, extra_terms=terms)
    assert not config.folder.exists()


@pytest.mark.parametrize("term", ["own", "own=", "own=-1", "own=nan", "=1", "Own=1", "loss=1", "own=1 own=2", "a b=1"])
def test_what_is_no_name_and_weight_is_refused(term):
    given = term.split() if term != "a b=1" else [term]
    assert "give NAME=WEIGHT" in refusal(lbgen.AlignConfig, extra_terms=given)


def test_terms_are_compared_by_value_and_not_by_how_they_are_written():
    config = lbgen.AlignConfig(extra_terms=("b=1", "a=.50"))
    assert config.extra_terms == ("a=0.5", "b=1.0") and config == lbgen.AlignConfig(extra_terms=["a=0.5", "b=1e0"])
    assert lbgen.AlignConfig(entire_weight=0, individual_weight=0, quality="none", extra_terms=("a=1",)).steps == 50
    assert "nothing would be trained" in refusal(
        lbgen.AlignConfig, entire_weight=0, individual_weight=0, quality="none", extra_terms=("a=0",)
    )


def test_a_term_that_nothing_offers_is_refused_before_anything_is_written(fresh):
    config = fresh(extra_terms=("darkness=1",))
    assert refusal(run.align, config).startswith("--extra-terms darkness: no such term (installed: none); install its")
    assert not config.folder.exists()


# ---- objects that are registered ----


def test_an_object_is_registered_under_a_name_that_a_config_gives(tiny_clip_folder):
    class Constant:
        def score(self, images, features=None):
            return images.mean(dim=(1, 2, 3)) * 0 + 3

    space = load_semantics(str(tiny_clip_folder))
    for given in (Constant(), lambda space: Constant()):
        lbgen.register("quality", "constant", given)
        assert load_quality("constant", space).score(torch.rand(2, 3, 8, 8)).tolist() == [3, 3]
    assert "not a group of extensions" in refusal(lbgen.register, "loss", "constant", Constant)
    assert "give a name and a function" in refusal(lbgen.register, "terms", "constant", 3)
    assert "b in quality: a dict has no method `score`; give a sc" in refusal(lbgen.register, "quality", "b", {})
    assert "give a name and a function" in refusal(lbgen.register, "quality", "", Constant())


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda images: images.mean(), "two images have scores (); give a tensor of shape (2,)"),
        (lambda images: images.mean(dim=(1, 2, 3)), "give scores in [1, 5]"),
        (lambda images: 3 + images.mean(dim=(1, 2, 3)).detach(), "no gradient reaches the images"),
    ],
)
def test_a_scorer_that_breaks_its_promise_is_refused(tiny_clip_folder, score, message):
    class Scorer(torch.nn.Module):
        def score(self, images, features=None):
            return score(images)

    lbgen.register("quality", "own", lambda space: Scorer())
    assert message in refusal(load_quality, "own", load_semantics(str(tiny_clip_folder)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimension": 5}, "features of two texts are (2, 4), torch.float32, not (2, 5), float32"),
        ({"unit": False}, "features of texts do not have unit norm; normalise them"),
        ({"detached": True}, "no gradient reaches the images; do not detach them"),
        ({"token_limit": None}, "it has no token_limit, which a SemanticSpace has"),
    ],
)
def test_a_language_space_that_breaks_its_promise_is_refused(changes, message):
    class Space(SemanticSpace):
        def __init__(self, device, dtype):
            self.device, self.dtype, self.dimension, self.logit_scale = device, dtype, changes.get("dimension", 4), 1.0
            self.image_side = 4
            if "token_limit" not in changes:
                self.token_limit = 9

        def embed_texts(self, texts, *, normalize=True):
            return F.normalize(torch.ones(len(texts), 4), dim=-1) * (1 if changes.get("unit", True) else 2)

        def embed_images(self, images, *, normalize=True):
            features = F.normalize(F.adaptive_avg_pool2d(images, 2).mean(dim=1).flatten(1), dim=-1)
            return features.detach() if "detached" in changes else features

        def tokens(self, texts):
            return [tuple(text.encode()) for text in texts]

    lbgen.register("semantics", "own", Space)
    assert message in refusal(load_semantics, "own")

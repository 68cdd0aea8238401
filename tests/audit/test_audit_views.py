"""What each probe is shown of an image, and how the object is hidden."""

import colorsys
import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lbgen.audit import views
from lbgen.audit.workers.observer import Observer, canvas_side
from lbgen.audit.workers.row_cache import RowCache
from lbgen.datasets import decode
from lbgen.models.semantics import load_semantics
from lbgen.runs.identity import model_identity


def encoded(size: tuple[int, int], format: str = "PNG", **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format, **options)
    return stream.getvalue()


@pytest.mark.parametrize("size", [(64, 64), (96, 48), (64, 192)])
def test_the_canvas_is_the_middle_square(size):
    """Against PIL's own resize of the whole and crop, where both fall on whole pixels."""
    found = views.decode(encoded(size), None, 32)
    image = Image.open(io.BytesIO(encoded(size)))
    wide = image.resize(tuple(32 * length // min(size) for length in size), Image.Resampling.BICUBIC)
    left, top = (wide.width - 32) // 2, (wide.height - 32) // 2
    wanted = np.array(wide.crop((left, top, left + 32, top + 32)))
    assert found.canvas.permute(1, 2, 0).numpy() == pytest.approx(wanted, abs=1)


def test_file_facts_are_the_files():
    """Width, height, aspect; a coarser JPEG has larger tables; formats one by one."""
    facts = dict(zip(views.FACTS, views.decode(encoded((40, 20)), None, 16).facts.tolist(), strict=True))
    assert np.exp([facts[f"log {name}"] for name in ("width", "height", "aspect")]) == pytest.approx([40, 20, 2])
    assert (facts["PNG"], facts["JPEG"], facts["quantisation"]) == (1, 0, 0)
    coarse, fine = (views.decode(encoded((40, 20), "JPEG", quality=q), None, 16).facts[3] for q in (30, 95))
    assert coarse > fine > 0


@pytest.mark.parametrize("content", [b"", b"no image", encoded((30, 30))[:200]])
def test_what_cannot_be_decoded_says_so(content):
    assert views.decode(content, None, 16).startswith("cannot be decoded")


def saved(image: Image.Image, format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def test_a_long_strip_is_cut_before_it_is_resized():
    """1 x 20,001 pixels: the middle one everywhere, and not 20,001 times the side in memory."""
    strip = np.zeros((20_001, 1, 3), np.uint8)
    strip[10_000] = (10, 200, 30)
    found = views.decode(saved(Image.fromarray(strip)), None, 224).canvas
    assert (found[:, 112, 112] == torch.tensor([10, 200, 30])).all()


def test_a_picture_is_upright():
    """EXIF orientation 6: the file's left column is the picture's top row; its mask, upright already, stays."""
    pixels, mask = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
    pixels[:, :16] = 255
    mask[:16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    found = views.decode(saved(Image.fromarray(pixels), exif=exif), saved(Image.fromarray(mask)), 32)
    assert (found.canvas[0, :16] == 255).all() and (found.canvas[0, 16:] == 0).all()
    assert found.mask[:16].all() and not found.mask[16:].any()


def test_sixteen_bits_keep_their_greys():
    """A ramp from black to white, not clipped at 255 of 65,535."""
    ramp = np.linspace(0, 65535, 32).round().astype(np.uint16)[None].repeat(32, axis=0)
    found = views.decode(saved(Image.fromarray(ramp)), None, 32).canvas[0, 0]
    assert found.tolist() == pytest.approx(np.linspace(0, 255, 32), abs=1)


def test_a_black_drawing_on_transparency_is_black_on_white():
    drawing = np.zeros((16, 16, 4), np.uint8)
    drawing[4:12, 4:12, 3] = 255
    found = views.decode(saved(Image.fromarray(drawing)), None, 16).canvas[0]
    assert (found[4:12, 4:12] == 0).all() and found.sum() == 255 * (256 - 64)


def test_a_mask_that_cannot_be_decoded_is_named():
    assert views.decode(encoded((30, 30)), b"no image", 16).startswith("its mask cannot be decoded")


def test_a_variant_that_pillow_does_not_know_says_so(monkeypatch):
    """A DDS file of another compression, of which Pillow raises NotImplementedError; DDS itself is not opened."""
    content = bytearray(encoded((30, 30), "DDS"))
    content[80:88] = b"\x04\0\0\0ABCD"
    assert views.decode(bytes(content), None, 16) == "cannot be decoded (its format is not known)"
    monkeypatch.setattr(decode, "FORMATS", (*decode.FORMATS, "DDS"))
    assert views.decode(bytes(content), None, 16).startswith("cannot be decoded (Unimplemented pixel format")


def test_blank_images_say_so():
    assert views.decode(saved(Image.new("RGB", (8, 8), (200, 10, 10))), None, 16).startswith("blank")


def test_hidden_pixels_leave_no_trace():
    """Two canvases that differ under the square only give the same picture."""
    first, second = torch.rand(2, 1, 3, 16, 16)
    hidden = torch.zeros(1, 16, 16, dtype=torch.bool)
    hidden[:, 2:9, 4:11] = True
    second = torch.where(hidden[:, None], second, first)
    assert torch.equal(views.outside(first, hidden), views.outside(second, hidden))
    assert views.inside_border(64).sum() == 56 * 56


def test_shuffled_patches_are_the_same_patches():
    canvas = torch.rand(2, 3, 8, 8)
    shuffled = views.patch_shuffle(canvas, [1, 2])

    def patches(image):
        return sorted(image[:, y : y + 2, x : x + 2].flatten().tolist() for y in range(0, 8, 2) for x in range(0, 8, 2))

    assert [patches(image) for image in shuffled] == [patches(image) for image in canvas]
    assert not torch.equal(shuffled, canvas)


def test_edges_of_stripes():
    """Upright stripes, four pixels black and four white: half the pixels lie beside a step, up or down, which is one

    direction; laid on their side, it is the one across."""
    canvas = ((torch.arange(66) - 1) // 4 % 2).float().expand(1, 3, 66, 66)
    shares = views.edge_histogram(canvas)[0] ** 2
    by_kind = shares.view(3, 4, 8)
    assert by_kind[0, 0].sum().item() == pytest.approx(0.5) and by_kind[0, 3, 0].item() == pytest.approx(0.5)
    assert by_kind.sum(dim=(1, 2)).tolist() == pytest.approx([1, 1, 1])
    turned = views.edge_histogram(canvas.transpose(2, 3))[0].view(3, 4, 8) ** 2
    assert turned[0, 3, 4].item() == pytest.approx(0.5)


def test_colours_and_thumbnail_of_a_known_picture():
    """Half black, half red: two colours of one half each; the thumbnail's columns are black, then red."""
    canvas = torch.zeros(1, 3, 32, 32)
    canvas[:, 0, :, 16:] = 1
    histogram = views.colour_histogram(canvas)[0] ** 2
    assert histogram[0].item() == pytest.approx(0.5) and histogram[3 * 16].item() == pytest.approx(0.5)
    assert views.thumbnail(canvas).view(3, 2, 2)[0].tolist() == [[0, 1], [0, 1]]


def test_hues_are_those_of_the_colour_circle():
    """Named colours by colorsys, half in the dark; a grey has none; what is not chosen does not count."""
    wanted = {"red": 0, "orange": 30, "yellow": 55, "green": 120, "cyan": 180, "blue": 230, "purple": 280, "pink": 330}
    colours = [colorsys.hsv_to_rgb(degrees / 360, 0.9, 0.8) for degrees in wanted.values()] + [(0.5, 0.5, 0.52)]
    canvas = torch.tensor(colours)[:, :, None, None].repeat(1, 1, 8, 8)
    canvas[:, :, 4:] = torch.tensor([0.0, 1, 0])[:, None, None]
    chosen = torch.zeros(9, 8, 8, dtype=torch.bool)
    chosen[:, :4] = True
    assert tuple(wanted) == tuple(views.HUES)
    assert views.dominant_hue(canvas, chosen).tolist() == list(range(9))


def test_the_square_of_a_mask_holds_it_and_says_nothing_of_its_proportions():
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 10:14, 5:25] = True
    masks[1, 5:25, 10:14] = True
    wide, tall = views.square_of_mask(masks)
    assert (wide & masks[0]).sum() == 80 and torch.equal(wide, tall.T)
    assert views.square_edges(wide[None])[0].tolist() == pytest.approx([1 / 32, 23 / 32, 4 / 32, 26 / 32])


def test_the_square_of_relevance_is_where_the_relevance_is():
    found = torch.zeros(2, 8, 8)
    found[0, 0, 0] = found[1, 7, 7] = 1
    first, last = views.square_of_relevance(found, 64)
    assert first.sum() == last.sum() == 56 * 56 and first[0, 0] and last[-1, -1] and not last[0, 0]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["clip", "metaclip2"])
def test_patch_relevance_is_what_attention_brings_to_the_class_token(kind, request, monkeypatch):
    """Patches and class token together: the last attention's own output, as torch computes it, along the text."""
    monkeypatch.setattr(views, "LAYERS_SHARE", 0.01)  # the last layer only
    space = load_semantics(str(request.getfixturevalue(f"tiny_{kind}_folder")))
    canvas, text = torch.rand(1, 3, 16, 16), space.embed_texts(["fish"])
    found = views.patch_relevance(space, canvas, text)
    vision = space.model.vision_model
    attention, attended = vision.encoder.layers[-1].self_attn, {}
    attention.register_forward_hook(lambda module, given, result: attended.update(out=result[0]))
    attention.v_proj.register_forward_hook(lambda module, given, result: attended.update(values=result))
    vision(space.preprocessing(canvas))
    direction = (text @ space.model.visual_projection.weight * vision.post_layernorm.weight)[0]
    direction = direction - direction.mean()
    attended_all = attended["out"][0, 0] - attention.out_proj.bias
    # Without the class token's value the same attention gives the patches' part alone.
    attention.v_proj.register_forward_hook(
        lambda module, given, result: result * torch.tensor([0.0, 1, 1, 1, 1])[:, None]
    )
    vision(space.preprocessing(canvas))
    patches = attended["out"][0, 0] - attention.out_proj.bias
    assert found.shape == (1, 2, 2) and found.sum().item() == pytest.approx((patches @ direction).item(), rel=1e-4)
    assert not torch.allclose(patches, attended_all)


@pytest.mark.parametrize("kind", ["siglip", "siglip2", "aimv2"])
def test_a_space_without_a_class_token_has_no_relevance(kind, request):
    space = load_semantics(str(request.getfixturevalue(f"tiny_{kind}_folder")))
    assert canvas_side(space) == (24 if kind == "siglip2" else 16)
    assert views.patch_relevance(space, torch.rand(1, 3, 16, 16), space.embed_texts(["fish"])) is None
    seen = views.decode(encoded((16, 16)), None, 16)
    hidden = Observer(space, 16).hidden([seen], seen.canvas[None] / 255, ["fish"])
    assert views.square_edges(hidden)[0].tolist() == [1 / 16, 15 / 16] * 2


def test_a_row_that_was_written_in_part_is_dropped(tmp_path):
    cache = RowCache(tmp_path, "a model", [("features", np.float16, (3,))])
    cache.append([b"a" * 32, b"b" * 32], {"features": np.ones((2, 3))})
    with cache.path.open("ab") as stream:
        stream.write(b"torn")
    again = RowCache(tmp_path, "a model", [("features", np.float16, (3,))])
    assert again.row_of == {b"a" * 32: 0, b"b" * 32: 1} and again.read("features", np.array([1])).shape == (1, 3)
    again.append([b"c" * 32], {"features": np.zeros((1, 3))})
    assert again.read("features", np.arange(3)).sum() == 6
    assert RowCache(tmp_path, "another model", [("features", np.float16, (3,))]).row_of == {}


def test_copies_in_one_batch_and_in_the_next_are_one_row(tmp_path):
    """Every key reads back what was appended with it first, here and when the file is opened again."""
    fields = [("features", np.float16, (1,))]
    cache = RowCache(tmp_path, "a model", fields)
    for keys, values in (("aab", [1, 9, 2]), ("ac", [9, 3]), ("a", [9]), ("d", [4])):
        cache.append([key.encode() * 32 for key in keys], {"features": np.array(values)[:, None]})
    for opened in (cache, RowCache(tmp_path, "a model", fields)):
        rows = np.array([opened.row_of[key * 32] for key in (b"a", b"b", b"c", b"d")])
        assert opened.read("features", rows)[:, 0].tolist() == [1, 2, 3, 4]


def test_a_model_that_reads_pictures_otherwise_is_another(tiny_clip_folder, tmp_path):
    """The same weights with another mean of the pixels; a copy elsewhere is the same model."""
    folders = [shutil.copytree(tiny_clip_folder, tmp_path / name) for name in ("copy", "changed")]
    (settings,) = [path for path in folders[1].glob("*processor*.json") if "image_mean" in path.read_text()]
    settings.write_text(settings.read_text().replace('"image_mean": [', '"image_mean": [\n 0.1,', 1))
    same, changed = map(model_identity, map(str, folders))
    assert same == model_identity(str(tiny_clip_folder)) != changed

"""Explanations of every measure on the page: definition, range, direction, source; and the limits of all of them."""

from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True)
class Definition:
    key: str
    """The key in measures.json; `a.b` is the key b of the object a."""
    title: str
    group: Literal["shortcuts", "content", "comparison"]
    definition: str
    range: str
    better: Literal["lower", "higher", "neither"]
    source: str
    percent: bool = False

    def plain(self) -> dict[str, str | bool]:
        return asdict(self)


GROUPS = {
    "shortcuts": "Shortcuts: cues other than the object that predict the label",
    "content": "Content of the datasets",
    "comparison": "Distance from the first dataset",
}
"""Group -> its title on the page."""

PROBE = (
    "Balanced accuracy (mean of the categories' accuracies) of a linear probe that predicts the category of held-out "
    "images from this alone, without repeated near-duplicates: "
)
PROBE_RANGE = "chance (1 / probed categories) to 1"
HIDDEN = "with a square over the object. At chance if nothing around the object is associated with the category"
SEEN = "The object is visible, so this is above chance in any dataset: compare datasets, and read the next line"
PROBE_SOURCE = "Ridge classifier, 5 folds, penalty by generalised cross-validation (Golub et al. 1979)"


def _probe(key: str, title: str, shown: str) -> Definition:
    return Definition(f"probes.{key}", title, "shortcuts", PROBE + shown, PROBE_RANGE, "lower", PROBE_SOURCE, True)


DEFINITIONS = (
    _probe(
        "background",
        "Label from the background",
        f"the semantic features of the image {HIDDEN}. The square encloses the given mask; without masks it has a "
        "fixed size and covers the patches that bring the image closest to the category's text. What the square's "
        "position alone predicts is regressed out.",
    ),
    _probe("border", "Label from the border", f"the same for the outermost sixteenth on every edge, also {HIDDEN}."),
    _probe(
        "thumbnail",
        "Label from a thumbnail",
        f"the pixels of the image at a sixteenth of the model's resolution. {SEEN}.",
    ),
    _probe("thumbnail_outside", "Thumbnail, object hidden", f"the same {HIDDEN}."),
    _probe(
        "color_histogram", "Label from the colours", f"the histogram of 64 colours, without their positions. {SEEN}."
    ),
    _probe("color_histogram_outside", "Colours, object hidden", f"the same {HIDDEN}."),
    _probe(
        "patch_shuffle",
        "Label from texture",
        "the semantic features of the image cut into 4 x 4 patches in random order, and its histogram of edges by "
        f"direction and strength. {SEEN}.",
    ),
    _probe("patch_shuffle_outside", "Texture, object hidden", f"the same {HIDDEN}."),
    _probe(
        "file_facts",
        "Label from file facts",
        "width, height, aspect, JPEG quantisation, format. At chance if files do not differ between categories.",
    ),
    Definition(
        "label_agreement",
        "Label agreement",
        "content",
        "Share of images whose nearest text, of those of the dataset's categories, is that of their own label. A tie "
        "of k texts counts 1 / k, so names that the model cannot tell apart are at chance.",
        "chance (1 / categories) to 1",
        "higher",
        "Zero-shot classification (Radford et al., arXiv 2103.00020)",
        True,
    ),
    Definition(
        "label_agreement_top5",
        "Label agreement, first five",
        "content",
        "Share of images for which the text of their own label is among the five nearest, ties counted in proportion.",
        "0 to 1",
        "higher",
        "Zero-shot classification (Radford et al., arXiv 2103.00020)",
        True,
    ),
    Definition(
        "diversity",
        "Diversity in a category",
        "content",
        "Effective number of different images in a category (Vendi score, cosine kernel, semantic features), mean over "
        "the categories. It uses the same number of images per category in all datasets of an audit, or all images of "
        "a category that has fewer. Poor images raise it too.",
        "1 to the number of images used",
        "higher",
        "Friedman and Dieng, arXiv 2210.02410",
    ),
    Definition(
        "feature_distance",
        "Distance in a category",
        "content",
        "1 - cosine of the semantic features of two images of a category, mean over pairs and categories.",
        "0 to 2",
        "higher",
        "Mean pairwise distance",
    ),
    Definition(
        "quality",
        "Quality",
        "content",
        '1 + 4 times the softmax weight of "good photo" against "bad photo", mean over images.',
        "1 to 5",
        "higher",
        "CLIP-IQA (Wang et al., arXiv 2207.12396)",
    ),
    Definition(
        "duplicates",
        "Near-duplicates",
        "content",
        "Share of images that are a copy of another image of the dataset, also a mirrored, slightly cropped, brighter, "
        "recompressed or resized one: their perceptual hashes differ in at most 12 of 64 bits, and at 32x32 pixels one "
        "explains nearly all of the other's variance after alignment, everywhere in the image.",
        "0 to 1",
        "lower",
        "pHash (Zauner 2010); alignment as in Lucas and Kanade (1981)",
        True,
    ),
    Definition(
        "duplicates_across_splits",
        "Near-duplicates across splits",
        "content",
        "The same, with an image of another split: such images leak from training into testing.",
        "0 to 1",
        "lower",
        "The same search",
        True,
    ),
    Definition(
        "balance",
        "Balance of categories",
        "content",
        "Entropy of the category sizes over its largest possible value; 1 if all categories are equally large.",
        "0 to 1",
        "higher",
        "Pielou's evenness (1966)",
    ),
    Definition(
        "edge_density",
        "Edge density",
        "content",
        "Share of pixels on a clear edge of brightness, mean over images. Neither direction is better; a difference "
        "between datasets means that one is flatter or noisier.",
        "0 to 1",
        "neither",
        "Sobel filter",
        True,
    ),
    Definition(
        "colour_entropy",
        "Colour entropy, bits",
        "content",
        "Entropy of an image's colour histogram with 512 bins, mean over images.",
        "0 to 9 bits",
        "neither",
        "Shannon entropy",
    ),
    Definition(
        "shared_images",
        "Images shared with the first dataset",
        "comparison",
        "Share of the compared images that are near-duplicates of an image of the first dataset. The correction of the "
        "Fréchet distance, the kernel distance and the intervals of both assume independent draws. They leave shared "
        "images out, or redraw them together. Images with equal paths are treated in the same way, because they may be "
        "made from the same noise.",
        "0 to 1",
        "neither",
        "The search of the near-duplicates",
        True,
    ),
    Definition(
        "frechet_distance",
        "Fréchet distance",
        "comparison",
        "Squared distance between Gaussians fitted to both datasets' features. It is biased upward for few images, so "
        "it is extrapolated to infinitely many from random halves of the datasets. With fewer than two images per "
        "feature it is still too high.",
        "0 upwards",
        "neither",
        "Heusel et al., arXiv 1706.08500; Chong and Forsyth, arXiv 1911.07023",
    ),
    Definition(
        "kernel_distance",
        "Kernel distance",
        "comparison",
        "Squared maximum mean discrepancy with a cubic kernel; unbiased for images drawn independently inside each "
        "category, paired images left out, so it may be slightly below 0 by chance.",
        "about 0 upwards",
        "neither",
        "Binkowski et al., arXiv 1801.01401",
    ),
    Definition(
        "precision",
        "Precision",
        "comparison",
        "Share of the images that lie inside the manifold of the first dataset: low means that many are unlike it.",
        "0 to 1",
        "higher",
        "Kynkaanniemi et al., arXiv 1904.06991",
        True,
    ),
    Definition(
        "recall",
        "Recall",
        "comparison",
        "Share of the first dataset's images that lie inside the manifold of this one: low means less varied.",
        "0 to 1",
        "higher",
        "Kynkaanniemi et al., arXiv 1904.06991",
        True,
    ),
    Definition(
        "density",
        "Density",
        "comparison",
        "Number of the first dataset's neighbourhoods that hold an image, over k = 5, mean; 1 for equal distributions.",
        "0 upwards",
        "higher",
        "Naeem et al., arXiv 2002.09797",
    ),
    Definition(
        "coverage",
        "Coverage",
        "comparison",
        "Share of the first dataset's images with an image of this one in their neighbourhood: low means less varied.",
        "0 to 1",
        "higher",
        "Naeem et al., arXiv 2002.09797",
        True,
    ),
)

ASSOCIATION = {
    "normalized_mutual_information": "Mutual information of attribute and category over the mean of their entropies, "
    "each less its mean under shuffled labels, without repeated near-duplicates. 0 by chance, 1 if one is a renaming "
    "of the other; with more categories than values it is below 1 even if every category has a fixed value (Vinh "
    "et al. 2010; Grassberger 2003).",
    "cramers_v": "Strength of association in [0, 1], corrected for the number of images (Bergsma 2013); 1 if the "
    "category determines the value.",
    "p_value": "Permutation test: share of shuffles of the labels with at least as much information (Phipson and Smyth "
    "2010).",
    "q_value": "The same adjusted for the number of attributes (Benjamini and Hochberg 1995); significant below 0.05.",
}

LIMITS = (
    "An association is not by itself a fault: fish live in water. It says what a model could learn instead of the "
    "object.",
    "Attributes are zero-shot predictions of a vision-language model. It makes errors, more of them on drawings and on "
    "rare things, and its errors may depend on the category: check a surprising pair by its images.",
    "Without masks, the object is hidden by a square of seven eighths of the side, where the model locates it. Parts "
    "of a larger object stay visible, so probes of its surroundings may be a few points above chance although nothing "
    "is associated. The object's own position and colour are then not measured.",
    "A linear probe gives a lower bound: a deeper network may find more.",
    "An interval covers other samples of the same size, with probes trained on them, but not another vision-language "
    "model. With masks and without any association, one interval in forty still begins above chance.",
    "Tests between datasets assume independent samples. Datasets that share images or noise differ more certainly than "
    "the tests say; only their distances take it into account.",
    "Where the categories of a set were balanced over a cue by design, the balanced part of it is left out before a "
    "probe of the surroundings learns. With two or three categories this cannot be told from chance; the probe then "
    "reads below chance.",
    "Less bias does not by itself make a better training set (arXiv 2404.01509), so there is no overall score.",
)
"""Printed on every page."""

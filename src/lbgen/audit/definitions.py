"""Every measure: what it is, between what, which way is better, and where it comes from."""

from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True)
class Definition:
    key: str
    """As in measures.json; `a.b` is b inside a."""
    title: str
    group: Literal["shortcuts", "content", "comparison"]
    definition: str
    range: str
    better: Literal["lower", "higher", "neither"]
    source: str
    percent: bool = False

    def plain(self) -> dict[str, str | bool]:
        return asdict(self)


PROBE = (
    "Share of held-out images, near duplicates once, whose category a linear probe tells from this alone, mean over "
    "the categories: "
)
PROBE_RANGE = "chance (1 / probed categories) to 1"
HIDDEN = "with a square over the object. Chance where nothing around the object is linked to the category"
SEEN = "The object is seen, so it is above chance in any set: compare sets, and read the line after it"
PROBE_SOURCE = "Ridge classifier, 5 folds, penalty by generalised cross-validation (Golub et al. 1979)"


def _probe(key: str, title: str, shown: str) -> Definition:
    return Definition(f"probes.{key}", title, "shortcuts", PROBE + shown, PROBE_RANGE, "lower", PROBE_SOURCE, True)


DEFINITIONS = (
    _probe(
        "background",
        "Label from the background",
        f"the semantic features of the image {HIDDEN}. The square is a given mask's; else of fixed size, where the "
        "model's patches bring the image towards the category's text. What follows from its place alone is taken out.",
    ),
    _probe("border", "Label from the border", f"the same of the outermost sixteenth on every edge, also {HIDDEN}."),
    _probe(
        "thumbnail",
        "Label from a tiny picture",
        f"the pixels of the picture at a sixteenth of the model's side. {SEEN}.",
    ),
    _probe("thumbnail_outside", "Tiny picture, object hidden", f"the same {HIDDEN}."),
    _probe("color_histogram", "Label from the colours", f"how much of each of 64 colours there is, not where. {SEEN}."),
    _probe("color_histogram_outside", "Colours, object hidden", f"the same {HIDDEN}."),
    _probe(
        "patch_shuffle",
        "Label from texture",
        "the semantic features of the picture cut into 4 x 4 squares in random order, and how many edges there are in "
        f"it of each direction and strength. {SEEN}.",
    ),
    _probe("patch_shuffle_outside", "Texture, object hidden", f"the same {HIDDEN}."),
    _probe(
        "file_facts",
        "Label from file facts",
        "width, height, aspect, JPEG quantisation, format. Chance where files do not differ between categories.",
    ),
    Definition(
        "label_agreement",
        "Label agreement",
        "content",
        "Share of images whose nearest category text is their own label's, of all categories of the dataset.",
        "0 to 1",
        "higher",
        "Zero-shot classification (Radford et al., arXiv 2103.00020)",
        True,
    ),
    Definition(
        "label_agreement_top5",
        "Label agreement, first five",
        "content",
        "Share of images whose own label's text is among the five nearest.",
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
        "the categories, of the same number of images in all datasets of an audit, or all that a smaller category has. "
        "Poor images raise it too.",
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
        "Near duplicates",
        "content",
        "Share of images whose 8x8 picture is within 0.015 (root mean square, of 1) of another image's of the dataset.",
        "0 to 1",
        "lower",
        "Exact search over all pairs",
        True,
    ),
    Definition(
        "duplicates_across_splits",
        "Near duplicates across splits",
        "content",
        "The same with an image of another split: such images leak from training into testing.",
        "0 to 1",
        "lower",
        "Exact search over all pairs",
        True,
    ),
    Definition(
        "balance",
        "Balance of categories",
        "content",
        "Entropy of the categories' sizes over its largest value; 1 when all are equally large.",
        "0 to 1",
        "higher",
        "Pielou's evenness (1966)",
    ),
    Definition(
        "edge_density",
        "Edge density",
        "content",
        "Share of pixels with a clear brightness step, mean over images. Neither way is better; a difference between "
        "sets says that one is flatter or noisier.",
        "0 to 1",
        "neither",
        "Sobel filter",
        True,
    ),
    Definition(
        "colour_entropy",
        "Colour entropy, bits",
        "content",
        "Entropy of an image's colours in 512 bins, mean over images.",
        "0 to 9 bits",
        "neither",
        "Shannon entropy",
    ),
    Definition(
        "frechet_distance",
        "Fréchet distance",
        "comparison",
        "Squared distance between Gaussians fitted to both sets' features, less what more images would take from it, "
        "as seen on halves of the sets. Still too high where there are fewer than two images a feature.",
        "0 upwards",
        "neither",
        "Heusel et al., arXiv 1706.08500; Chong and Forsyth, arXiv 1911.07023",
    ),
    Definition(
        "kernel_distance",
        "Kernel distance",
        "comparison",
        "Squared maximum mean discrepancy with a cubic kernel; unbiased for sets drawn category by category, so it may "
        "fall a little below 0 by chance.",
        "about 0 upwards",
        "neither",
        "Binkowski et al., arXiv 1801.01401",
    ),
    Definition(
        "precision",
        "Precision",
        "comparison",
        "Share of images that lie among the reference's.",
        "0 to 1",
        "higher",
        "Kynkaanniemi et al., arXiv 1904.06991",
        True,
    ),
    Definition(
        "recall",
        "Recall",
        "comparison",
        "Share of the reference's images that lie among these: low means narrower.",
        "0 to 1",
        "higher",
        "Kynkaanniemi et al., arXiv 1904.06991",
        True,
    ),
    Definition(
        "density",
        "Density",
        "comparison",
        "How many of the reference's neighbourhoods an image lies in, over k = 5; 1 for the same distribution.",
        "0 upwards",
        "higher",
        "Naeem et al., arXiv 2002.09797",
    ),
    Definition(
        "coverage",
        "Coverage",
        "comparison",
        "Share of the reference's images with one of these in their neighbourhood: low means narrower.",
        "0 to 1",
        "higher",
        "Naeem et al., arXiv 2002.09797",
        True,
    ),
)

ASSOCIATION = {
    "normalized_mutual_information": "What an image's attribute says of its category, near duplicates once: mutual "
    "information over the mean of both entropies, each less what shuffled labels give. 0 by chance, 1 if one is a "
    "renaming of the other; with more categories than values, below 1 even for a fixed value a category (Vinh et al. "
    "2010; Grassberger 2003).",
    "cramers_v": "Strength of association in [0, 1], corrected for the number of images (Bergsma 2013); 1 where the "
    "category fixes the value.",
    "p_value": "Share of shuffles of the labels that give at least as much information (Phipson and Smyth 2010).",
    "q_value": "The same adjusted for the number of attributes (Benjamini and Hochberg 1995); significant below 0.05.",
}

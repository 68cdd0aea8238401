"""Which category ids and splits may become folder and file names, and the id of a category that has only a name.

A dataset folder may be copied to any file system, so the rules of the strictest common system (Windows) apply.
"""

import hashlib
import re
import unicodedata

RESERVED = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    f"{d}{n}" for d in ("COM", "LPT") for n in "0123456789¹²³"
}
"""Device names: Windows opens the device, whatever the extension."""

MAX_BYTES = 120
"""Longest id in bytes of UTF-8. File systems allow 255 for a file name, and an index and an extension follow the id."""

RESERVED_SPLITS = ("index", "screening", "data", "all", "masks")
"""Names that no new split can have: folders of a dataset, and the name that readers use for all splits together."""

REMEDY = 'use letters, digits, "_", "-" or "."'


def fault(category_id: str) -> str | None:
    """Why an id cannot be a folder name, with the remedy; None for a valid id."""
    if re.search(r"[/\\]", category_id) or category_id in (".", ".."):
        return f"would leave the dataset folder; {REMEDY}"
    if any(character in '<>:"|?*' or unprintable(character) for character in category_id):
        return f"holds a character that file names may not have; {REMEDY}"
    if reserved(category_id):
        return "is a reserved file name on Windows; add a letter"
    if category_id.startswith((".", " ")) or category_id.endswith((".", " ")):
        return 'begins or ends with a dot or a space; remove it or use "_"'
    if category_id.startswith("__"):
        return 'begins with "__", which Hugging Face datasets takes for hidden and leaves out; remove a "_"'
    if len(category_id.encode()) > MAX_BYTES:
        return f"is longer than {MAX_BYTES} bytes; shorten it"
    return None if category_id else f"is empty; {REMEDY}"


def reserved(category_id: str) -> bool:
    """Whether Windows would open a device instead of a folder of this name."""
    return category_id.split(".")[0].rstrip().upper() in RESERVED


def unprintable(character: str) -> bool:
    """Whether it is a control character, an invisible format character, a lone surrogate or a line separator."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def id_from_name(name: str) -> str:
    """`polar bear` -> `polar_bear`. Invalid characters are dropped; a hash of the name then keeps the id unique.

    The id depends only on the name, so it stays the same if the list is shortened or reordered.
    """
    plain = name.replace(" ", "_")
    if re.fullmatch(r"[A-Za-z0-9_-]+", plain) and fault(plain) is None:
        return plain
    ascii_letters = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
    kept = re.sub(r"[^A-Za-z0-9_-]+", "_", ascii_letters)[:40].strip("_-")
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{kept}-{digest}" if kept else f"category-{digest}"


def comparable(text: str) -> str:
    """A normalised form, equal for texts that some file system or lower-casing tokenizer does not distinguish."""
    return unicodedata.normalize("NFKC", text).casefold()


def difference(text: str, other: str) -> str:
    """How two texts with equal comparable forms differ."""
    forms = [unicodedata.normalize("NFKC", each) for each in (text, other)]
    if forms[0] == forms[1]:
        return "Unicode form"
    return "case" if text.casefold() == other.casefold() else "case and Unicode form"


def is_split_name(split: str) -> bool:
    """Whether an existing split can have this name; a new split must also pass `split_fault`."""
    return split.isidentifier() and split not in ("index", "screening", "data", "all")


def split_fault(split: str) -> str | None:
    """Why a name cannot be used for a new split, with the remedy; None if it can.

    The name becomes a folder's name and the first part of file names, so the rules for ids apply.
    """
    if comparable(split) in RESERVED_SPLITS:
        return f'"{split}" has another meaning in a dataset folder; choose another name'
    why = fault(split)
    return f'"{split}" {why}' if why else None

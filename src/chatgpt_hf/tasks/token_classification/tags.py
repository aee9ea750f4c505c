"""Recognizes tag schemes (IOB1, BIO, BIOES, BILOU, BMES, IO and others) and converts their tags to BIO."""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

# B begins an entity, I and M continue it, E and L end it, S, U and W mark an entity of one word.
_LETTERS = "BIMELSUW"
_BEGIN, _END = "BSUW", "ELSUW"
_PREFIX = re.compile(rf"([{_LETTERS}])[-_](.+)")
_SUFFIX = re.compile(rf"(.+)[-_]([{_LETTERS}])")
_LOWER = re.compile(r"[bi][-_].+|.+[-_][bi]")
_BARE = re.compile(r"[^\W\d_][\w.&/ -]*")
_SEVERAL = re.compile(rf"[|,;][{_LETTERS}][-_].", re.IGNORECASE)
_BIO = re.compile(r"O|[BI]-.+")
# The kind of entity if the tags name none: `B`, `I`, `O`.
UNNAMED_KIND = "ENTITY"


class Scheme(NamedTuple):
    """How the tags of a file are written.

    Attributes:
        order: `prefix` (`B-PER`), `suffix` (`PER-B`), `bare` (`PER`, without a letter) or `letter` (`B`, without a
            kind).
        is_lower: True if letters may be in lower case: `b-per`, `o`.
    """

    order: str = "prefix"
    is_lower: bool = False

    def parse(self, tag: str) -> tuple[str, str] | None:
        """Returns the letter and the kind of a tag, `O` without a kind; None if it does not fit the scheme."""
        if tag == "O" or (self.is_lower and tag == "o"):
            return "O", ""
        if self.order == "bare":
            return ("I", tag) if _BARE.fullmatch(tag) else None
        if self.order == "letter":
            letter = tag.upper() if self.is_lower else tag
            return (letter, UNNAMED_KIND) if letter in set(_LETTERS) else None
        if _SEVERAL.search(tag):
            return None
        pattern = _PREFIX if self.order == "prefix" else _SUFFIX
        cased = tag
        if self.is_lower:
            cased = tag[:1].upper() + tag[1:] if self.order == "prefix" else tag[:-1] + tag[-1:].upper()
        if not (match := pattern.fullmatch(cased)):
            return None
        letter, kind = match.groups() if self.order == "prefix" else match.groups()[::-1]
        return letter, kind


def is_tag(text: str) -> bool:
    """True if a text is a tag with a letter, in any scheme, or O."""
    return bool(text in ("O", "o") or _PREFIX.fullmatch(text) or _SUFFIX.fullmatch(text) or _LOWER.fullmatch(text))


def find_scheme(tags: Collection[str]) -> Scheme:
    """Returns the scheme that most of the different tags of a file fit."""
    named = set(tags) - {"O", "o"}
    is_lower = ("o" in tags and "O" not in tags) or (
        not any(_PREFIX.fullmatch(tag) or _SUFFIX.fullmatch(tag) for tag in named)
        and any(_LOWER.fullmatch(tag) for tag in named)
    )
    has_o = len(named) < len(set(tags))
    letters = Scheme("letter", is_lower or "b" in named)
    if named & {"B", "b", "I", "i"} and all(letters.parse(tag) for tag in named):
        return letters
    fits = {
        order: sum(Scheme(order, is_lower).parse(tag) is not None for tag in named) for order in ("prefix", "suffix")
    }
    if has_o and named and not any(fits.values()) and all(_BARE.fullmatch(tag) for tag in named):
        return Scheme("bare", is_lower)
    return Scheme("suffix" if fits["suffix"] > fits["prefix"] else "prefix", is_lower)


def scheme_name(scheme: Scheme, tags: Iterable[str]) -> str:
    """Names a scheme for the log, such as `BIES` tags, by the letters that occur."""
    found = {parsed[0] for tag in tags if (parsed := scheme.parse(tag))} - {"O"}
    if scheme.order == "bare":
        return "tags without a letter (neighbouring words with the same tag are one entity)"
    written = {"prefix": "", "suffix": " after the kind", "letter": " without a kind"}[scheme.order]
    return f"tags {'-'.join(letter for letter in _LETTERS if letter in found)}{written}"


def is_bio(tags: Iterable[str]) -> bool:
    """True if all tags are written as in BIO."""
    return all(_BIO.fullmatch(tag) for tag in tags)


def to_bio(tags: Sequence[tuple[str, str]]) -> tuple[list[str], int]:
    """Converts the letters and kinds of a sentence to BIO tags.

    A letter that continues an entity of another kind, or none at all, begins an entity, as in IOB1.

    Returns:
        The tags, and how many entities began without B, S, U or W.
    """
    converted, began, open_kind = [], 0, None
    for letter, kind in tags:
        if letter == "O":
            converted.append("O")
            open_kind = None
            continue
        begins = letter in _BEGIN or kind != open_kind
        began += begins and letter not in _BEGIN
        converted.append(f"{'B' if begins else 'I'}-{kind}")
        open_kind = None if letter in _END else kind
    return converted, began


def tag_fault(tag: str) -> str:
    """Says what is wrong with a tag that does not fit its file's scheme."""
    if tag == "0":
        return "it has the tag '0', the digit: write the letter O"
    if _SEVERAL.search(tag):
        return f"it has several tags in one, {tag!r}: give each word one"
    return f"it has the tag {tag!r} instead of O, B-... or I-..."


def bio_names(names: Sequence[str]) -> list[str]:
    """Returns tag names as BIO, `O` first; those that are BIO already keep their order.

    Names of no known scheme are returned unchanged.
    """
    if not is_bio(names):
        scheme = find_scheme(names)
        parsed = [scheme.parse(name) for name in names]
        if all(parsed):
            kinds = dict.fromkeys(kind for letter, kind in filter(None, parsed) if letter != "O")
            return ["O", *(f"{letter}-{kind}" for kind in kinds for letter in "BI")]
    return ["O", *(name for name in names if name != "O")]

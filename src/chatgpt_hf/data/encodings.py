"""Finds the encoding of a text file, and names the likely ones of a file that cannot be read."""

import codecs
from typing import BinaryIO

from ..errors import ConfigError
from ..extras import needed_by

# UTF-32 comes first: its little-endian mark begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Of encodings that fit equally well, the first of these is the most widespread.
_KNOWN = (
    *("gb18030", "cp1252", "shift_jis", "big5", "euc_kr", "cp1251", "euc_jp", "koi8_r"),
    *("cp1250", "cp1256", "cp1253", "cp1255", "cp874"),
)
_SHOWN = 3
_NO_COINCIDENCE = 10
_SAMPLE = 1 << 16


def check_encoding(encoding: str | None, field: str = "encoding") -> None:
    """Raises `ConfigError` if Python does not know a text encoding; None is allowed."""
    if encoding is None:
        return
    try:
        if not isinstance(encoding, str):
            raise LookupError
        "a".encode(encoding)
        b"".decode(encoding)
    except (LookupError, UnicodeError, ValueError) as error:
        raise ConfigError(
            f"{field} is {encoding!r}, which is no text encoding: give a name such as gb18030, cp1252 or shift_jis"
        ) from error


def encoding_by_mark(head: bytes) -> str | None:
    """Returns the encoding whose byte order mark a file begins with; None if there is no mark."""
    return next((name for mark, name in MARKS if head.startswith(mark)), None)


def looks_like_utf16(head: bytes) -> str | None:
    """Returns `utf-16-le` or `utf-16-be` if every other byte of a file's beginning is mostly zero, else None."""
    for name, zeros in (("utf-16-le", head[1:1024:2]), ("utf-16-be", head[:1024:2])):
        # Text in another script has zeros only at its spaces and line ends, and is not UTF-8 either.
        if len(zeros) > 1 and zeros.count(0) > 0.6 * len(zeros):
            return name
    return None


def is_surely_utf8(head: bytes) -> bool:
    """True if the beginning of a file is UTF-8 with so many characters beyond ASCII that this is no coincidence."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return sum(character > "\x7f" for character in text) >= _NO_COINCIDENCE


def likely_encodings(stream: BinaryIO, start: int) -> list[tuple[str, str]]:
    """Returns encodings that a text may have, the likeliest first, each with a piece of the text read by it.

    Args:
        stream: The text's bytes.
        start: Offset of the first byte that is not UTF-8; the sample is taken there.
    """
    with needed_by("Naming the likely encodings"):
        import charset_normalizer
    skip = max(0, start - _SAMPLE // 4) // 4 * 4
    stream.read(skip)
    sample = stream.read(_SAMPLE)
    if b"\0" in sample:
        # Text has no zeros, but half of each space, digit and line end is one in UTF-16.
        even, odd = sample[::2].count(0), sample[1::2].count(0)
        name = "utf-16-be" if even > odd else "utf-16-le"
        try:
            return [(name, _piece(codecs.getincrementaldecoder(name)().decode(sample)))]
        except UnicodeDecodeError:
            return []  # no text at all
    if skip:
        sample = sample[sample.find(b"\n") + 1 :]  # not in the middle of a character
    if b"\n" in sample and len(sample) > _SAMPLE // 2:
        sample = sample[: sample.rfind(b"\n") + 1]
    with needed_by("To name the likely encoding of a file"):
        import charset_normalizer

    matches = charset_normalizer.from_bytes(sample, cp_isolation=list(_KNOWN), threshold=1.0)
    found = sorted(
        (match.chaos + _share_of_half_width(str(match)), _KNOWN.index(name))
        for match in matches
        for name in match.could_be_from_charset
        if name in _KNOWN
    )
    names = list(dict.fromkeys(_KNOWN[index] for _, index in found)) or [
        name for name in _KNOWN if _fits(sample, name)
    ]
    return [(name, _piece(sample.decode(name, errors="replace"))) for name in names[:_SHOWN]]


def _share_of_half_width(text: str) -> float:
    """Returns how much of a text is half-width katakana, which any bytes may look like but hardly anybody writes."""
    letters = [character for character in text if ord(character) > 127]
    return sum("\uff61" <= character <= "\uff9f" for character in letters) / max(1, len(letters))


def _fits(sample: bytes, encoding: str) -> bool:
    try:
        sample.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _piece(text: str) -> str:
    """Returns a few words around the first character that is not ASCII."""
    first = next((index for index, character in enumerate(text) if ord(character) > 127), 0)
    return " ".join(text[max(0, first - 10) : first + 10].split())

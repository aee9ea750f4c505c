"""A list of banned words, which are found even when disguised."""

import logging
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from ..errors import ContentFiltered, DataError
from ..parsing import read_file
from .characters import LOOKS, Kind, fold, kind_of
from .scanner import Node, Scanner

logger = logging.getLogger("chatgpt_hf.moderation")

_LONGEST_LINE = 1000


class WordList:
    """A moderator that blocks a list of words and phrases.

    It finds whole words: in upper or lower case, with accents, in full-width or other decorated letters, in look-alike
    letters of other alphabets, with digits and symbols for letters, with repeated letters, written as in HTML or JSON,
    in invisible tag characters, in reverse after a bidirectional override, and with gaps between letters. Symbols,
    unusual spaces and invisible characters always count as gaps. White space (and dashes of a sentence) counts only
    if all pieces have at most two letters or one piece has a single letter, so it finds "p e n i s" and "p enis" but
    not "pen is"; in a word of three letters, only if all pieces have one. The words of a phrase may be separated by
    white space and symbols, but not by the end of a sentence or of a part of it, unless the list has this
    punctuation. Words in scripts without spaces, such as Chinese, are found anywhere, even with spaces and symbols
    between the characters, but not across punctuation of sentences. A gap may have at most 16 characters, a match at
    most 400; invisible ones do not count, and one that is written as in HTML or JSON counts as one.

    Look-alike letters are those that Unicode calls confusable (UTS #39) and those of common fancy alphabets. So an
    English word also matches a word of another language that looks the same. Names in code that only touch, as in
    `r.append` and `lines_hit`, are not parts of one word.

    Args:
        words: The words; `*` at the beginning or end of a word stands for any beginning or ending.
        name: Name of the list, for the log.
        log_text: Also log the text that was found.

    Raises:
        DataError: If there are no words, or a word has no letters or digits.
    """

    def __init__(self, words: Iterable[str], name: str = "words", log_text: bool = False) -> None:
        self.name = name
        self._log_text = log_text
        lines = [(number, line.strip()) for number, line in enumerate(words, 1)]
        self._lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
        self._check_lines()
        self._roots = self._trie(self._lines)

    @classmethod
    def from_file(cls, path: str | Path, log_text: bool = False) -> "WordList":
        """Reads words from a UTF-8 text file, one per line. Blank lines and lines that begin with `#` are ignored.

        Raises:
            DataError: If the file cannot be read, is not UTF-8 or has no words.
        """
        try:
            text = read_file(Path(path), "utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"The word list {path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from error
        except OSError as error:
            raise DataError(f"The word list {path} cannot be read: {error.strerror or error}.") from error
        lines = text.splitlines()
        for number, line in enumerate(lines, 1):
            # The letters of a word are folded one by one, in all their forms.
            if len(line) > _LONGEST_LINE and not line.startswith("#"):
                raise DataError(
                    f"The word list {path} has {len(line):,} characters in line {number}: write one word or phrase per line."
                )
        return cls(lines, str(path), log_text)

    def check(self, text: str) -> None:
        """Raises `ContentFiltered` if the text contains one of the words."""
        scanner = self._scanner()
        for char in text:
            scanner.feed(char)
            if scanner.match is not None:
                break
        else:
            scanner.finish()
        if scanner.match is not None:
            start, end, line = scanner.match
            self._log("input", line, text[start:end])
            raise ContentFiltered("Moderation blocked the message: it contains a listed word.")

    def filter(self) -> "_WordFilter":
        """Returns a filter that holds back only text that may become one of the words."""
        return _WordFilter(self)

    def _scanner(self) -> Scanner:
        return Scanner(self._roots, lambda: self._reversed_roots)

    @cached_property
    def _reversed_roots(self) -> tuple[Node, Node]:
        return self._trie([(number, line[::-1]) for number, line in self._lines])

    def _log(self, direction: str, line: int, text: str) -> None:
        said = f": {text!r}" if self._log_text else ""
        logger.warning("blocked %s: word list %s, line %d%s", direction, self.name, line, said)

    def _check_lines(self) -> None:
        if not self._lines:
            raise DataError(f"The word list {self.name} has no words; write one per line.")
        for number, line in self._lines:
            if not any(own.isalnum() for own, _, _ in _letters(line.strip("*"))):
                raise DataError(
                    f"The word list {self.name}, line {number}: {line!r} contains only marks, invisible characters or "
                    "symbols; a word needs a letter or a digit."
                )

    @staticmethod
    def _trie(lines: list[tuple[int, str]]) -> tuple[Node, Node]:
        """Returns the roots of the words that begin at a border, and of those with an open beginning."""
        root, root_open = Node(), Node()
        for number, line in lines:
            letters = _letters(line.strip("*"))
            anywhere = any(kind_of(own[0]) == Kind.CJK for own, _, _ in letters)
            node = root_open if line.startswith("*") else root
            for index, (own, looks, word_end) in enumerate(letters):
                if index == len(letters) - 1:
                    looks = looks.replace("!", "") or looks  # at the end of a word, "!" ends a sentence
                node = node.child(own, looks, anywhere, len(letters) <= 3, word_end and not anywhere)
            if line.endswith("*"):
                node.line_open = number if node.line_open is None else node.line_open
            elif node.line is None:
                node.line = number
        return root, root_open


def _letters(word: str) -> list[tuple[str, str, bool]]:
    """Returns for each letter: both cases folded, all characters that may stand for it, and if white space follows."""
    letters: list[tuple[str, str, bool]] = []
    for char in word:
        if char.isspace():
            if letters:
                letters[-1] = (*letters[-1][:2], True)
            continue
        lower, upper = ("".join(map(fold, case)) for case in (char.lower(), char.upper()))
        for a, b in zip(lower, upper if len(upper) == len(lower) else lower, strict=True):
            own = a if a == b else a + b
            looks = dict.fromkeys(own + "".join(LOOKS.get(letter, "") for letter in own))
            letters.append((own, "".join(looks), False))
    if letters:
        letters[-1] = (*letters[-1][:2], False)
    return letters


class _WordFilter:
    """Ends an answer before the first of the words."""

    def __init__(self, words: WordList) -> None:
        self.finish_reason: str | None = None
        self._words = words
        self._scanner = words._scanner()
        self._held: list[str] = []  # pieces: a character may be written with very many zeros
        self._shown = 0

    def feed(self, piece: str) -> str:
        if self.finish_reason is not None:
            return ""
        self._held.append(piece)
        for char in piece:
            self._scanner.feed(char)
        return self._release()

    def finish(self) -> str:
        if self.finish_reason is not None:
            return ""
        self._scanner.finish()
        return self._release(ending=True)

    def _release(self, ending: bool = False) -> str:
        match = self._scanner.match
        end = match[0] if match else self._scanner.held_from
        everything = ending or match is not None
        if not everything and end == self._shown:
            return ""
        held = "".join(self._held)
        cut = len(held) if ending and not match else end - self._shown
        shown, rest = held[:cut], held[cut:]
        self._held = [rest]
        self._shown += cut
        if match:
            self.finish_reason = "content_filter"
            start, end, line = match
            self._words._log("output", line, rest[: end - start])
            self._held = []
        return shown

"""A list of banned words, which are found even when disguised."""

import logging
import re
import unicodedata
from collections.abc import Iterable
from enum import Enum, auto
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ..errors import ContentFiltered, DataError
from ..extras import needed_by
from ..parsing import read_file

with needed_by("A word list"):
    from confusable_homoglyphs.confusables import is_confusable

logger = logging.getLogger("chatgpt_hf.moderation")

_LONGEST_LINE = 1000

# Both limit how much text is held back.
LONGEST_GAP = 16
LONGEST_MATCH = 400

# Invisible, although their category does not say so: joiners, fillers, variation selectors, the blank Braille pattern.
_INVISIBLE = {"\u034f", "\u115f", "\u1160", "\u17b4", "\u17b5", "\u2800", "\u3164", "\uffa0"}
_INVISIBLE |= {chr(code) for code in [*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]}
# Canonical combining classes of marks that are part of the spelling: vowels and viramas of Indic scripts, Thai, Lao and
# Tibetan, nuktas, and the mark that turns は into ば.
_SPELLING_MARKS = {0, 7, 8, 9, 84, 91, 103, 107, 118, 122, 129, 130, 132}
_LATIN_NAME = re.compile(
    r"(?:LATIN (?:SMALL|CAPITAL) LETTER|LATIN LETTER SMALL CAPITAL|REGIONAL INDICATOR SYMBOL LETTER|"
    r"(?:CROSSED )?NEGATIVE (?:CIRCLED|SQUARED) LATIN CAPITAL LETTER) "
    r"(?:DOTLESS |OPEN |REVERSED (?=E)|SCRIPT |TURNED (?=[AEHRT]))?([A-Z])(?: WITH .+)?"
)
# Commonly used as these letters, but not confusable according to Unicode.
_LOOKS_LATIN = dict(zip("βєзкмпηπтωшƒӏ", "beekmnnntwwfI", strict=True))
_LEET = {
    "a": "4@",
    "b": "8",
    "c": "¢",
    "e": "3€",
    "g": "9",
    "i": "1!|¡",
    "l": "1!|I£",
    "o": "0",
    "s": "5$",
    "t": "7†",
    "x": "×",
    "y": "¥",
    "z": "2",
}
# In a sentence these separate words, like white space.
_DASHES = "–—―"
_CJK_STOPS = ",。!?、;:"
_CONTRACTION = re.compile(r".(?:ll|s|re|ve|d|m)|nt")


class _Kind(Enum):
    LETTER = auto()  # or digit
    HANGUL = auto()
    CJK = auto()  # written without spaces
    MARK = auto()  # part of the letter before it
    SPACE = auto()
    SYMBOL = auto()


@lru_cache(maxsize=4096)
def fold(char: str) -> str:
    """Folds a character for comparison: to zero or more characters, without marks, lower case, Latin if it looks so.

    A capital I stays, because it also looks like an l. Letters that look like an l or I become a capital I.
    """
    return "".join(_fold(part) for part in unicodedata.normalize("NFKD", char))


def _fold(char: str) -> str:
    if char == "I" or char.isspace():
        return char
    if char.isascii():
        return char.lower() if char.isprintable() else ""
    category = unicodedata.category(char)
    if char in _INVISIBLE or category in ("Cc", "Cf", "Me"):
        return ""
    if category == "Mn":
        return char if unicodedata.combining(char) in _SPELLING_MARKS else ""
    if category == "Nd":
        return str(unicodedata.decimal(char))
    if category[0] in "PS":
        return _latin_by_name(char) or char  # folding further would turn separators into letters
    if _kind(char) in (_Kind.CJK, _Kind.HANGUL):
        return char
    folded = char.casefold()
    # Before lower-casing: the Greek capital Ν looks like N, but its small letter ν like v.
    return _latin(char) or (_latin(folded) if len(folded) == 1 else "") or folded


def _latin(char: str) -> str:
    """The Latin letter that a character looks like, by Unicode's confusables (UTS #39) or by its name; "" if none."""
    if letter := _LOOKS_LATIN.get(char) or _latin_by_name(char):
        return letter
    found = is_confusable(char, greedy=True) or []
    looks = [look["c"] for look in found[0]["homoglyphs"]] if found else []
    for look in looks:
        if look.isascii() and len(look) == 1 and look.isalpha():
            return "I" if look in "Il" else look.lower()
    return next((letter for look in looks if len(look) == 1 and (letter := _latin_by_name(look))), "")


def _latin_by_name(char: str) -> str:
    match = _LATIN_NAME.fullmatch(unicodedata.name(char, ""))
    return match[1].lower() if match else ""


@lru_cache(maxsize=4096)
def _kind(char: str) -> _Kind:
    category = unicodedata.category(char)
    if char.isspace() or char in _DASHES:
        return _Kind.SPACE
    if category in ("Mn", "Mc"):
        return _Kind.MARK
    if category[0] not in "LN":
        return _Kind.SYMBOL
    name = unicodedata.name(char, "")
    if name.startswith(("CJK ", "HIRAGANA", "KATAKANA", "BOPOMOFO", "IDEOGRAPHIC", "THAI", "LAO", "KHMER", "MYANMAR")):
        return _Kind.CJK
    return _Kind.HANGUL if name.startswith("HANGUL") else _Kind.LETTER


class _Node:
    """A node of the trie of words: a letter that words with the same beginning share. The root has no letter.

    Attributes:
        own: The folded letter, in both cases.
        looks: The same, plus digits and symbols that stand for it.
        kind: Kind of the letter itself.
        anywhere: The words need no boundary, because their script has no spaces.
        short: The words are so short that a doubled letter makes another word, as in god and good.
        word_end: White space may follow, in a phrase.
        line, line_open: Line number of the word that ends here; and of a word with an open ending (`*`).
    """

    def __init__(self, own: str = "", looks: str = "", anywhere: bool = False, short: bool = False) -> None:
        self.own, self.looks, self.anywhere, self.short = own, looks, anywhere, short
        self.kind = _kind(own[0]) if own else _Kind.SYMBOL
        self.word_end = False
        self.line: int | None = None
        self.line_open: int | None = None
        self.children: dict[tuple[str, str, bool], _Node] = {}
        self.moves: dict[str, list[_Node]] = {}

    def child(self, own: str, looks: str, anywhere: bool, short: bool, word_end: bool) -> "_Node":
        # A word and a phrase that begins with it need different nodes here.
        key = (looks + " " * word_end, own, short)
        if key not in self.children:
            node = self.children[key] = _Node(own, looks, anywhere, short)
            node.word_end = word_end
            for look in looks:
                self.moves.setdefault(look, []).append(node)
        return self.children[key]

    @property
    def latin(self) -> bool:
        return self.own.isascii()


class _State(NamedTuple):
    """A partial match of a word in the text.

    Attributes:
        node: The last letter of the word that was found.
        evidence: A real letter was found, not only digits and symbols that stand for letters.
        inside: The match started right after other text, without white space; or a fragment has only digits or
            symbols.
        in_word: The match started in the middle of a word.
        run: How often the last letter of a short word was found in a row; 3 means 3 or more.
        doubled: The last letter was found twice, but the word has it once.
        gap: There is a gap after the last letter.
        wide: The current gap contains white space.
        spaced: An earlier gap contained white space.
        letter: The current fragment has evidence.
        fragment: Number of letters in the current fragment (the letters between two gaps); 3 means 3 or more.
        single: An earlier fragment had one letter.
        longest: The longest of the earlier fragments; 3 means 3 or more.
        gaps: Number of gaps; 2 means 2 or more.
        tail: If the first gap is an apostrophe, the letters around it.
    """

    node: _Node
    evidence: bool
    inside: bool
    in_word: bool
    run: int = 1
    doubled: bool = False
    gap: bool = False
    wide: bool = False
    spaced: bool = False
    letter: bool = True
    fragment: int = 1
    single: bool = False
    longest: int = 1
    gaps: int = 0
    tail: str = ""

    def whole(self) -> bool:
        """True if the letters so far count as one word."""
        if self.doubled or not self.evidence:
            return False
        if self.gaps == 1 and _CONTRACTION.fullmatch(self.tail):
            return False
        if not self.spaced or self.node.anywhere:
            return True
        longest, single = max(self.longest, self.fragment), self.single or self.fragment == 1
        if self.in_word:
            return False
        return longest == 1 if self.inside or not self.letter else longest <= 2 or single


class _Scanner:
    """Searches for all words of a list at once, character by character.

    Attributes:
        held_from: Start of the text that may still become a match.
        match: Start and end of the first match, and the line of its word.
    """

    def __init__(self, root: _Node, root_open: _Node) -> None:
        self.match: tuple[int, int, int] | None = None
        self._root, self._root_open = root, root_open
        self._states: dict[_State, tuple[int, int]] = {}  # start of the match, length of the gap
        self._position = 0
        self._before = _Kind.SPACE
        self._char_before = ""
        self._inside = False

    @property
    def held_from(self) -> int:
        return min((start for start, _ in self._states.values()), default=self._position)

    def feed(self, char: str) -> None:
        """Takes the next character of the text."""
        for folded in fold(char):
            if self.match is None:
                self._feed(folded)
        self._position += 1

    def finish(self) -> None:
        """Takes the end of the text."""
        self._accept(None)

    def _feed(self, char: str) -> None:
        kind = _kind(char)
        if char in "-." and char == self._char_before:
            kind = _Kind.SPACE  # -- stands for a dash, and ... for an ellipsis
        self._accept(kind)
        if self.match is not None:
            return
        states: dict[_State, tuple[int, int]] = {}
        for state, (start, gap) in self._states.items():
            if self._position - start >= LONGEST_MATCH:
                continue
            for follower in self._followers(state, char, kind):
                longer = gap + 1 if follower.gap else 0
                if longer <= LONGEST_GAP:
                    first, shortest = states.get(follower, (start, longer))
                    states[follower] = min(first, start), min(shortest, longer)
        for root in (self._root, self._root_open):
            for node in root.moves.get(char, ()):
                in_word = self._before == node.kind and not node.anywhere
                if not in_word or root is self._root_open:
                    letter = self._evidence(node, char)
                    states.setdefault(_State(node, letter, self._inside, in_word, letter=letter), (self._position, 0))
        self._states = states
        self._accept_open()
        self._char_before = char
        if kind != _Kind.MARK:
            self._before = kind
            if kind in (_Kind.SPACE, _Kind.CJK, _Kind.HANGUL):
                self._inside = False
            elif kind == _Kind.LETTER:
                self._inside = True

    def _accept(self, following: _Kind | None) -> None:
        """Accepts words that have ended, now that the following character is known."""
        for state, (start, _) in self._states.items():
            node = state.node
            line = node.line if node.line is not None else node.line_open
            if line is None or state.gap or not state.whole():
                continue
            if following == _Kind.MARK or (following == node.kind and not node.anywhere):
                continue
            self._found(start, self._position, line)

    def _accept_open(self) -> None:
        for state, (start, _) in self._states.items():
            # Not across white space: `ass*` is not in "as surely".
            if state.node.line_open is not None and not state.gap and not state.spaced and state.whole():
                self._found(start, self._position + 1, state.node.line_open)

    def _found(self, start: int, end: int, line: int) -> None:
        self.match = min(self.match or (start, end, line), (start, end, line))

    def _followers(self, state: _State, char: str, kind: _Kind) -> list[_State]:
        node = state.node
        # A repeated symbol stays a letter or a separator; otherwise "!!!!" could be read in very many ways.
        again = kind == _Kind.SYMBOL and char == self._char_before
        followers = []
        if not (again and state.gap):
            if not state.doubled and (not node.word_end or not state.gap or state.whole()):
                followers += [self._advanced(state, child, char) for child in node.moves.get(char, ())]
            if char in node.looks and kind != _Kind.CJK:
                run = min(state.run + 1, 3) if node.short else 1
                doubled = run == 2 and char.isalnum()
                followers.append(self._advanced(state, node, char)._replace(run=run, doubled=doubled))
        if kind == _Kind.MARK and node.latin:
            followers.append(state)
        stops = node.anywhere and char in _CJK_STOPS
        if kind in (_Kind.SPACE, _Kind.SYMBOL) and not stops and not (again and followers):
            followers.append(self._separated(state, char, kind))
        return followers

    def _advanced(self, state: _State, node: _Node, char: str) -> _State:
        letter = self._evidence(node, char)
        evidence = state.evidence or letter
        again = node.short and node is not state.node and node.own == state.node.own
        run = min(state.run + 1, 3) if again else 1
        tail = state.tail + char if state.tail and len(state.tail) < 4 else state.tail
        if not state.gap:
            fragment = min(state.fragment + (node is not state.node), 3)
            letter = state.letter or letter
            return state._replace(
                node=node, evidence=evidence, letter=letter, run=run, doubled=False, fragment=fragment, tail=tail
            )
        if state.node.word_end and node is not state.node:
            return _State(node, evidence, False, False, run=run, letter=letter)
        return state._replace(
            node=node,
            evidence=evidence,
            inside=state.inside or not state.letter,
            letter=letter,
            run=run,
            doubled=False,
            gap=False,
            wide=False,
            spaced=state.spaced or state.wide,
            fragment=1,
            single=state.single or state.fragment == 1,
            longest=max(state.longest, state.fragment),
            tail=tail,
        )

    def _separated(self, state: _State, char: str, kind: _Kind) -> _State:
        wide = state.wide or kind == _Kind.SPACE
        if state.gap:
            # The gap is longer than an apostrophe.
            return state._replace(wide=wide, tail="")
        tail = self._char_before if char in "'’" and not state.gaps else ""
        return state._replace(gap=True, wide=wide, gaps=min(state.gaps + 1, 2), tail=tail)

    @staticmethod
    def _evidence(node: _Node, char: str) -> bool:
        # Otherwise "so" would match "50", and "hel" would match "he, I".
        return char in node.own or char == "@" or (char.isalpha() and char != "I")


class WordList:
    """A moderator that blocks a list of words and phrases.

    It finds whole words: in upper or lower case, with accents, in full-width or other decorated letters, in look-alike
    letters of other alphabets, with digits and symbols for letters, with repeated letters, and with gaps between
    letters. Symbols and invisible characters always count as gaps. White space (and dashes of a sentence) counts only
    if all pieces have at most two letters or one piece has a single letter, so it finds "p e n i s" and "p enis" but
    not "pen is". Words in scripts without spaces, such as Chinese, are found anywhere, even with spaces and symbols
    between the characters, but not across punctuation of sentences. A gap may have at most 16 characters, a match at
    most 400.

    Look-alike letters are those that Unicode calls confusable (UTS #39). So an English word also matches a word of
    another language that looks the same.

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
        self._root, self._root_open = _Node(), _Node()
        lines = [(number, line.strip()) for number, line in enumerate(words, 1)]
        self._add_all([(number, line) for number, line in lines if line and not line.startswith("#")])

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

    def _scanner(self) -> _Scanner:
        return _Scanner(self._root, self._root_open)

    def _log(self, direction: str, line: int, text: str) -> None:
        said = f": {text!r}" if self._log_text else ""
        logger.warning("blocked %s: word list %s, line %d%s", direction, self.name, line, said)

    def _add_all(self, lines: list[tuple[int, str]]) -> None:
        if not lines:
            raise DataError(f"The word list {self.name} has no words; write one per line.")
        for number, line in lines:
            letters = _letters(line.strip("*"))
            if not any(own.isalnum() for own, _, _ in letters):
                raise DataError(
                    f"The word list {self.name}, line {number}: {line!r} contains only marks, invisible characters or "
                    "symbols; a word needs a letter or a digit."
                )
            self._add(number, letters, line.startswith("*"), line.endswith("*"))

    def _add(self, number: int, letters: list[tuple[str, str, bool]], open_start: bool, open_end: bool) -> None:
        anywhere = any(_kind(own[0]) == _Kind.CJK for own, _, _ in letters)
        node = self._root_open if open_start else self._root
        for index, (own, looks, word_end) in enumerate(letters):
            if index == len(letters) - 1:
                looks = looks.replace("!", "") or looks  # at the end of a word, "!" ends a sentence
            node = node.child(own, looks, anywhere, len(letters) <= 3, word_end and not anywhere)
        if open_end:
            node.line_open = number if node.line_open is None else node.line_open
        elif node.line is None:
            node.line = number


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
            letters.append((own, own + "".join(_LEET.get(letter, "") for letter in own), False))
    if letters:
        letters[-1] = (*letters[-1][:2], False)
    return letters


class _WordFilter:
    """Ends an answer before the first of the words."""

    def __init__(self, words: WordList) -> None:
        self.finish_reason: str | None = None
        self._words = words
        self._scanner = words._scanner()
        self._held = ""
        self._shown = 0

    def feed(self, piece: str) -> str:
        if self.finish_reason is not None:
            return ""
        self._held += piece
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
        cut = len(self._held) if ending and not match else end - self._shown
        shown, self._held = self._held[:cut], self._held[cut:]
        self._shown += cut
        if match:
            self.finish_reason = "content_filter"
            start, end, line = match
            self._words._log("output", line, self._held[: end - start])
            self._held = ""
        return shown

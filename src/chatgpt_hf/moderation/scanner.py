"""Searches a text for all words of a list at once, character by character."""

import copy
import re
from collections.abc import Callable
from html import unescape
from html.entities import html5
from typing import NamedTuple

from ..inference.texts import unescaped
from .characters import SPELLING, STROKES, Kind, Read, fold, kind_of, read, script

# Both limit how much text is held back.
LONGEST_GAP = 16
LONGEST_MATCH = 400

_CJK_STOPS = ",。!?、;:"
_CONTRACTION = re.compile(r".(?:ll|s|re|ve|d|m)|nt")
# In code, one of these joins two words: `r.append`, `lines_hit`, `f(x)`. Markdown's marks do not.
_JOINERS = frozenset("!\"#$%&'()+,-./:;<=>?@[\\]_{|}")
# Between the words of a phrase, each of these ends a part of a sentence, if it touches white space.
_STOPS = frozenset(".,;:!?…()[]{}")
# From here to the end of the line, text is shown in reverse.
_OVERRIDE = "\u202e"
# Invisible characters that stand for printable ASCII, in order: tags, and variation selectors that number bytes from 16.
_INVISIBLE_ASCII = {chr(first + code): chr(code) for first in (0xE0000, 0xE00F0) for code in range(0x20, 0x7F)}
# The beginning of a character that is written as in HTML or JSON. Of the zeros that a number begins with, one is kept.
_ZEROS = re.compile(r"&#[xX]?00")
_REFERENCE = re.compile(
    r"&(?:#(?:0?[0-9]{0,7}|[xX]0?[0-9a-fA-F]{0,6})|[A-Za-z][A-Za-z0-9]{0,31})?"
    r"|\\(?:u(?:[0-9a-fA-F]{0,4}|[dD][89abAB][0-9a-fA-F]{2}\\(?:u[0-9a-fA-F]{0,4})?))?"
)


class Node:
    """A node of the trie of words: a letter that words with the same beginning share. The root has no letter.

    Attributes:
        own: The folded letter, in both cases.
        evident: Characters that show that letters are meant. Otherwise "so" would match "50", and "hel" would match
            "he, I".
        looks: The same, plus digits and symbols that stand for it.
        kind: Kind of the letter itself.
        anywhere: The words need no boundary, because their script has no spaces.
        short: The words are so short that a doubled letter makes another word, as in god and good.
        word_end: White space may follow, in a phrase.
        line, line_open: Line number of the word that ends here; and of a word with an open ending (`*`).
    """

    def __init__(self, own: str = "", looks: str = "", anywhere: bool = False, short: bool = False) -> None:
        self.own, self.looks, self.anywhere, self.short = own, looks, anywhere, short
        self.kind = kind_of(own[0]) if own else Kind.SYMBOL
        self.script = script(own[0]) if own else ""
        self.evident = frozenset(own + "@" + ("" if short else SPELLING.get(own[:1], "")))
        self.word_end = False
        self.line: int | None = None
        self.line_open: int | None = None
        self.children: dict[tuple[str, str, bool], Node] = {}
        self.moves: dict[str, list[Node]] = {}

    def child(self, own: str, looks: str, anywhere: bool, short: bool, word_end: bool) -> "Node":
        # A word and a phrase that begins with it need different nodes here.
        key = (looks + " " * word_end, own, short)
        if key not in self.children:
            node = self.children[key] = Node(own, looks, anywhere, short)
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
        joined: The only gap so far is something that joins names in code.
        number: A digit stands for a letter of a short word, or it begins like `%s`.
        stop: In the current gap between two words of a phrase, a part of a sentence ended.
    """

    node: Node
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
    joined: bool = False
    number: bool = False
    stop: bool = False

    def whole(self) -> bool:
        """True if the letters so far count as one word."""
        if self.doubled or not self.evidence:
            return False
        if self.gaps == 1 and _CONTRACTION.fullmatch(self.tail):
            return False
        if self.joined and self.in_word:
            return False
        if self.number and self.gaps:
            return False  # t[1], t
        if not self.spaced or self.node.anywhere:
            return True
        longest, single = max(self.longest, self.fragment), self.single or self.fragment == 1
        if self.in_word:
            return False
        if self.inside or self.node.short or not self.letter:
            return longest == 1  # "for s in text" is no sin
        return longest <= 2 or single


class _Start(NamedTuple):
    """Where a match begins: the position in the text, and how many characters were read before it.

    A character that is written as in HTML takes many positions, any number of zeros included, but is read as one.
    """

    position: int
    reads: int


class Scanner:
    """Searches for all words of a list at once, character by character.

    Args:
        roots: The words that begin at a border, and those with an open beginning.
        reversed_roots: Returns the same with all words reversed; called if a text contains a bidirectional override.

    Attributes:
        match: Start and end of the first match, and the line of its word.
    """

    def __init__(self, roots: tuple[Node, Node], reversed_roots: Callable[[], tuple[Node, Node]]) -> None:
        self.match: tuple[int, int, int] | None = None
        self._roots, self._reversed_roots = roots, reversed_roots
        self._overridden = False
        self._states: dict[_State, tuple[_Start, int]] = {}  # start of the match, length of the gap
        self._position = 0
        self._index = 0
        self._written = ""  # the beginning of a character that is written as in HTML or JSON
        self._widths: list[int] = []  # how much of the text each of its characters stands for
        # Tag characters are invisible, so this reads past them. A language model can read them as letters: another
        # scanner does so, from the first one on.
        self._spells_tags = False
        self._spelling: Scanner | None = None
        self._before = Kind.SPACE
        self._style = ""
        self._char_before = ""
        self._inside = False

    @property
    def held_from(self) -> int:
        """Start of the text that may still become a match."""
        own = min((start.position for start, _ in self._states.values()), default=self._position)
        return own if self._spelling is None else min(own, self._spelling.held_from)

    def feed(self, char: str) -> None:
        """Takes the next character of the text."""
        self._read(char, 1)

    def _read(self, char: str, width: int) -> None:
        """Takes a character that stands for so many characters of the text."""
        if not self._written:
            if char in ("&", "\\"):
                self._written, self._widths = char, [width]
            else:
                self._take(char, width)
            return
        written = self._written + char
        if _ZEROS.fullmatch(written):
            self._widths[-1] += width
        elif (meant := _meant(written)) is not None:
            width += sum(self._widths)
            self._written = ""
            # Written twice, as in &amp;#116; this begins another character.
            self._read(meant, width)
        elif _REFERENCE.fullmatch(written):
            self._written = written
            self._widths.append(width)
        else:
            self._take_written()
            self._read(char, width)

    def finish(self) -> None:
        """Takes the end of the text."""
        while self._written:
            self._take_written()
        if self.match is None:
            self._accept(None)
        if self._spelling is not None:
            self._spelling.finish()
            self._take_match_of(self._spelling)

    def _take_written(self) -> None:
        written, widths, self._written = self._written, self._widths, ""
        end = _end_without_semicolon(written)
        if end and (meant := _meant(f"{written[:end]};")) is not None:
            self._read(meant, sum(widths[:end]))
        else:
            self._take(written[0], widths[0])
            end = 1
        for char, width in zip(written[end:], widths[end:], strict=True):
            self._read(char, width)

    def _take(self, char: str, width: int) -> None:
        if char == _OVERRIDE:
            self._overridden = True
        elif char == "\n":
            self._overridden = False
        tag = _INVISIBLE_ASCII.get(char, "")
        if tag and not self._spells_tags and self._spelling is None:
            self._spelling = copy.copy(self)
            self._spelling._spells_tags = True
        if self._spelling is not None:
            self._spelling._take(char, width)
        # A word may be whole in tags beside visible letters.
        if tag and self._spells_tags:
            reads = tuple(each._replace(style="tag") for each in read(tag))
        else:
            reads = read(char) if char else ()
        for folded in reads:
            if self.match is None:
                self._feed(folded, width)
        self._position += width
        self._index += bool(reads)
        if self._spelling is not None:
            self._take_match_of(self._spelling)

    def _take_match_of(self, other: "Scanner") -> None:
        if other.match is not None:
            self._found(*other.match)

    def _feed(self, now: Read, width: int) -> None:
        char, kind, style = now
        if char in "-." and char == self._char_before:
            kind = Kind.SPACE  # -- stands for a dash, and ... for an ellipsis
        if self._states:
            self._accept(now if kind == now.kind else now._replace(kind=kind))
            if self.match is not None:
                return
        states: dict[_State, tuple[_Start, int]] = {}
        for state, (start, gap) in self._states.items():
            if self._index - start.reads >= LONGEST_MATCH:
                continue
            for follower in self._followers(state, char, kind):
                longer = gap + 1 if follower.gap else 0
                if longer <= LONGEST_GAP:
                    first, shortest = states.get(follower, (start, longer))
                    states[follower] = min(first, start), min(shortest, longer)
        self._begin(states, self._roots, char, kind, style)
        if self._overridden:
            self._begin(states, self._reversed_roots(), char, kind, style)
        self._states = states
        if states:
            self._accept_open(width)
        self._char_before = char
        if kind != Kind.MARK:
            self._before, self._style = kind, style
            if kind in (Kind.SPACE, Kind.WIDE, Kind.CJK, Kind.HANGUL):
                self._inside = False
            elif kind == Kind.LETTER and not style:
                self._inside = True

    def _begin(
        self, states: dict[_State, tuple[_Start, int]], roots: tuple[Node, Node], char: str, kind: Kind, style: str
    ) -> None:
        """Adds the matches that begin here."""
        root, root_open = roots
        for node in root.moves.get(char, ()):
            in_word = self._same_word(node, kind, self._before, style)
            # In a format, `%4$s` is an argument.
            if not in_word and not (node.short and self._char_before == "%" and char.isdigit()):
                self._begin_at(states, node, char, False)
        for node in root_open.moves.get(char, ()):
            self._begin_at(states, node, char, self._same_word(node, kind, self._before, style))

    def _begin_at(self, states: dict[_State, tuple[_Start, int]], node: Node, char: str, in_word: bool) -> None:
        letter = char in node.evident
        number = _is_number(node, char) or (node.short and self._char_before == "%")
        state = _State(node, letter, self._inside, in_word, letter=letter, number=number)
        states.setdefault(state, (_Start(self._position, self._index), 0))

    def _same_word(self, node: Node, own: Kind, neighbor: Kind, style: str) -> bool:
        """True if a neighbor belongs to the word of a match.

        Args:
            node: The first or last letter of the match.
            own: The kind of the character that stands for this letter.
            neighbor: The kind of the character next to it.
            style: The style of the later one of the two.
        """
        if node.anywhere or style != self._style:
            return False
        # A Chinese character may stand for a letter, but not in the middle of Chinese.
        return neighbor == node.kind or (neighbor == own and own in (Kind.CJK, Kind.HANGUL))

    def _accept(self, following: Read | None) -> None:
        """Accepts words that have ended, now that the following character is known."""
        for state, (start, _) in self._states.items():
            node = state.node
            line = node.line if node.line is not None else node.line_open
            if line is None or state.gap or not state.whole():
                continue
            if following is not None:
                if following.kind == Kind.MARK and script(following.char) == node.script:
                    continue
                if self._same_word(node, self._before, following.kind, following.style):
                    continue
            self._found(start.position, self._position, line)

    def _accept_open(self, width: int) -> None:
        for state, (start, _) in self._states.items():
            # Not across white space: `ass*` is not in "as surely".
            if state.node.line_open is None or state.gap or state.spaced or state.joined:
                continue
            if state.whole():
                self._found(start.position, self._position + width, state.node.line_open)

    def _found(self, start: int, end: int, line: int) -> None:
        self.match = min(self.match or (start, end, line), (start, end, line))

    def _followers(self, state: _State, char: str, kind: Kind) -> list[_State]:
        node = state.node
        if node.latin and char in STROKES:
            kind = Kind.SYMBOL
        # A repeated symbol stays a letter or a separator; otherwise "!!!!" could be read in very many ways.
        again = kind == Kind.SYMBOL and char == self._char_before
        followers = []
        argument = node.short and state.gap and self._char_before == "%"
        if not (again and state.gap) and not argument:
            if not state.doubled and (not node.word_end or not state.gap or state.whole()):
                followers += [self._advanced(state, child, char) for child in node.moves.get(char, ())]
            if char in node.looks and not (kind == Kind.CJK and char in node.own):
                run = min(state.run + 1, 3) if node.short else 1
                doubled = run == 2 and char.isalnum()
                followers.append(self._advanced(state, node, char)._replace(run=run, doubled=doubled))
        if kind == Kind.MARK and script(char) != node.script:
            followers.append(state)
        stops = node.anywhere and char in _CJK_STOPS
        separates = kind in (Kind.SPACE, Kind.WIDE, Kind.SYMBOL)
        if separates and not stops and not (again and followers) and not self._ends_phrase(state, char, kind):
            followers.append(self._separated(state, char, kind))
        return followers

    @staticmethod
    def _ends_phrase(state: _State, char: str, kind: Kind) -> bool:
        """True if a phrase would go on after the end of a sentence, or of a part of it."""
        if not state.node.word_end:
            return False
        if kind == Kind.SYMBOL:
            return state.wide and char in _STOPS
        return state.stop or not char.isspace()

    def _advanced(self, state: _State, node: Node, char: str) -> _State:
        letter = char in node.evident
        evidence = state.evidence or letter
        again = node.short and node is not state.node and node.own == state.node.own
        run = min(state.run + 1, 3) if again else 1
        tail = state.tail + char if state.tail and len(state.tail) < 4 else state.tail
        number = state.number or _is_number(node, char)
        if not state.gap:
            fragment = min(state.fragment + (node is not state.node), 3)
            letter = state.letter or letter
            return state._replace(
                node=node,
                evidence=evidence,
                letter=letter,
                run=run,
                doubled=False,
                fragment=fragment,
                tail=tail,
                number=number,
            )
        if state.node.word_end and node is not state.node:
            return _State(node, evidence, False, False, run=run, letter=letter, number=number)
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
            number=number,
        )

    def _separated(self, state: _State, char: str, kind: Kind) -> _State:
        wide = state.wide or kind == Kind.SPACE
        stop = state.node.word_end and (state.stop or char in _STOPS)
        if state.gap:
            # The gap is longer than an apostrophe.
            return state._replace(wide=wide, tail="", stop=stop, joined=state.joined and char in _JOINERS)
        tail = self._char_before if char in "'’" and not state.gaps else ""
        joined = not state.gaps and char in _JOINERS
        gaps = min(state.gaps + 1, 2)
        return state._replace(gap=True, wide=wide, gaps=gaps, tail=tail, stop=stop, joined=joined)


def _is_number(node: Node, char: str) -> bool:
    return node.short and char.isdigit() and char not in node.own


def _meant(written: str) -> str | None:
    """The character that is written as in HTML or JSON; None if it is none, or one that no word contains.

    Empty for what HTML reads as nothing.
    """
    if written.startswith("\\"):
        meant = unescaped(written)
        return meant if len(meant) == 1 and len(written) >= 6 and meant != "\ufffd" else None
    if not written.endswith(";"):
        return None
    if written[1:2] == "#":
        meant = unescape(written)
        return None if meant == written else meant
    meant = html5.get(written[1:], "")
    folded = fold(meant) if len(meant) == 1 else "?"
    word = not folded.strip() or (folded.isascii() and folded.isalnum())
    return meant if word or meant in ("&", "\\") else None


def _end_without_semicolon(written: str) -> int:
    """The end of a character that browsers read although its semicolon is missing; 0 if there is none."""
    if written[1:2] == "#":
        return len(written)
    return next((end for end in range(len(written), 2, -1) if written[1:end] in html5), 0)

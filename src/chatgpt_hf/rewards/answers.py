"""Rewards that compare an answer with what the data say: exact, number, regex, length, honest."""

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from ..data.messages import is_blank, text_of
from ..errors import ConfigError, DataError
from ..evaluation.text import squad_pair
from .base import Reward, Text, answer_text

# Marks the result in GSM8K (Cobbe et al. 2021) and its kin, and in answers to competition problems.
_RESULT = re.compile(r"####\s*(?P<marked>.+)|\\boxed\{(?P<boxed>[^{}]*)\}")
# A sign belongs to a number if nothing that could be subtracted from stands before it.
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]}])[-+−])?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|(?:(?<![\w.)\]}])[-+−])?(?<!\d)\.\d+"
)
PHRASES = ("I don't know", "I do not know", "I'm not sure", "我不知道", "不知道")


def exact(*, squad: bool = False) -> Reward:
    """1 if an answer is the text in the column `answer`, or one of the texts in a list; white space around it does not count.

    Args:
        squad: Compare in lower case without punctuation and articles, as SQuAD does.
    """

    def function(completions: Sequence[Text], answer: Sequence[Any], **_: Any) -> list[float]:
        return [
            float(any(_same(answer_text(said), right, squad=squad) for right in texts_of(cell)))
            for said, cell in zip(completions, answer, strict=True)
        ]

    return Reward("exact", function, ("answer",), check_cell=_check_answer)


def number() -> Reward:
    """1 if the last number in an answer is the one in the column `answer`.

    What follows `####`, or is inside `\\boxed{}`, comes first on both sides. Commas between thousands do not count, nor how a
    number is written: 42 is 42.0.
    """

    def function(completions: Sequence[Text], answer: Sequence[Any], **_: Any) -> list[float]:
        return [
            float((found := number_in(answer_text(said))) is not None and found in map(number_in, texts_of(cell)))
            for said, cell in zip(completions, answer, strict=True)
        ]

    def check_cell(answer: Any) -> None:
        _check_answer(answer)
        if wrong := [text for text in texts_of(answer) if number_in(text) is None]:
            raise DataError(f"its answer {wrong[0]!r:.80} has no number")

    return Reward("number", function, ("answer",), check_cell=check_cell)


def regex(*, pattern: str | None = None) -> Reward:
    """1 if a regular expression matches somewhere in an answer.

    Args:
        pattern: The expression for all answers; that of the column `pattern` if not given.

    Raises:
        ConfigError: If it is no regular expression.
    """

    def function(completions: Sequence[Text], pattern: Sequence[Any], **_: Any) -> list[float]:
        return [
            float(re.search(str(cell), answer_text(said)) is not None)
            for said, cell in zip(completions, pattern, strict=True)
        ]

    def check_cell(pattern: Any) -> None:
        if not isinstance(pattern, str):
            raise DataError(f"its pattern is {pattern!r:.80}: give a regular expression")
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise DataError(f"its pattern {pattern!r:.80} is no regular expression: {error}") from error

    if pattern is None:
        return Reward("regex", function, ("pattern",), check_cell=check_cell)
    try:
        check_cell(pattern)
    except DataError as error:
        raise ConfigError(f"The reward regex cannot be used: {error}.") from error
    given = pattern
    return Reward("regex", lambda completions, **_: function(completions, [given] * len(completions)))


def length(*, most: int | None = None, least: int = 0) -> Reward:
    """1 for an answer of a wanted length in tokens, its end mark included; less the further it is from it, down to 0.

    Args:
        most: The longest wanted answer; one of twice that length gets 0.
        least: The shortest wanted answer; an empty one gets 0.

    Raises:
        ConfigError: If neither is given, or they contradict each other.
    """
    if (most is None and not least) or least < 0 or (most is not None and most < max(1, least)):
        raise ConfigError(
            f"The reward length has most={most} and least={least}: give the longest or the shortest wanted answer in tokens, such "
            "as {name: length, most: 64}."
        )

    def function(completions: Sequence[Text], completion_ids: Sequence[Sequence[int]] | None, **_: Any) -> list[float]:
        if completion_ids is None:
            raise ConfigError("it counts tokens, and there are only texts")
        return [value(len(ids)) for ids in completion_ids]

    def value(tokens: int) -> float:
        if tokens < least:
            return tokens / least
        return 1.0 if most is None else max(0.0, min(1.0, 2 - tokens / most))

    return Reward("length", function)


def honest(*, phrases: Sequence[str] = PHRASES, wrong: float = -1.0) -> Reward:
    """1 for the right answer, 0 for saying that one does not know, -1 for anything else.

    A row without an `answer`, or whose answer itself begins with one of the phrases, has no right answer: only saying so gets
    more than -1.

    Args:
        phrases: How an answer begins that says so; case and the kind of apostrophe do not count.
        wrong: Reward of a wrong answer, and of one without an end mark.

    Raises:
        ConfigError: If there is no phrase, or a wrong answer would get more than none.
    """
    if (
        isinstance(phrases, str)
        or not all(isinstance(phrase, str) and phrase.strip() for phrase in phrases)
        or not phrases
    ):
        raise ConfigError("The reward honest needs phrases that say that one does not know: give a list of texts.")
    if not wrong < 0:
        raise ConfigError(f"The reward honest has wrong={wrong}: give a number below 0, the reward of not answering.")

    def judge(said: str, rights: Sequence[str]) -> float:
        if abstains(said, phrases):
            return 0.0
        known = [right for right in rights if not abstains(right, phrases)]
        return 1.0 if any(_same(said, right, squad=False) for right in known) else wrong

    def function(completions: Sequence[Text], answer: Sequence[Any], **_: Any) -> list[float]:
        return [judge(answer_text(said), texts_of(cell)) for said, cell in zip(completions, answer, strict=True)]

    def check_cell(answer: Any) -> None:
        if not is_blank(answer):
            _check_answer(answer)

    return Reward("honest", function, ("answer",), least=wrong, check_cell=check_cell)


def abstains(text: str, phrases: Sequence[str] = PHRASES) -> bool:
    """True if an answer begins with one of the phrases that say that one does not know."""
    return _plain(text).startswith(tuple(map(_plain, phrases)))


def number_in(text: str) -> Decimal | None:
    """The number that a text ends with: after the last `####`, in the last `\\boxed{}`, or else the last one."""
    marked = [found["marked"] or found["boxed"] or "" for found in _RESULT.finditer(text)]
    for part in (*marked[-1:], text):
        if found := _NUMBER.findall(part):
            # A result is followed by its unit, and a text by its result.
            written = found[0] if part is not text else found[-1]
            try:
                return Decimal(written.replace(",", "").replace("−", "-"))
            except InvalidOperation:
                continue
    return None


def texts_of(cell: Any) -> list[str]:
    """The texts of a cell: a text, a number, or a list of them."""
    items = cell if isinstance(cell, (list, tuple)) else [cell]
    return [text for item in items if (text := text_of(item)) is not None]


def _check_answer(answer: Any) -> None:
    items = answer if isinstance(answer, (list, tuple)) else [answer]
    if is_blank(answer) or any(is_blank(item) or text_of(item) is None for item in items):
        raise DataError(f"its answer is {answer!r:.80}: give a text, a number, or a list of them")


def _same(said: str, right: str, *, squad: bool) -> bool:
    if squad:
        return len(set(squad_pair(said, right))) == 1
    return said.strip() == right.strip()


def _plain(text: str) -> str:
    return text.strip().lower().replace("’", "'")

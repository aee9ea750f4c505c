"""`builtin:relations`: short texts about invented people, places and companies, and the relations they state, as JSON.

A constructed set for relation extraction, not a sample of real text. Each text has one to three sentences that state a
relation. The wording varies, active and passive, and sometimes a pronoun refers to a person named before. Every third
text also has a sentence that names people or places but states no relation. The completion is a JSON list of
`{"head", "relation", "tail"}` in the order of the text. Names are built from syllables. Names of the held-out texts
never occur in training, neither whole nor as a first or last name, so a model must copy what it reads. The result
depends only on this file.
"""

import json
from collections.abc import Sequence
from itertools import product
from typing import TypeVar

from .python_docs import HELD_OUT_SHARE, fraction

T = TypeVar("T")

TEXTS = 2000

_GIVEN = [
    a + b
    for a, b in product(
        ["Ba", "Do", "Fe", "Ga", "Jo", "Ka", "Le", "Mi", "No", "Pe", "Ro", "Sa", "Te", "Vi", "Zu"],
        ["bel", "dra", "lin", "mir", "na", "rik", "sen", "tho"],
    )
]
_FAMILY = [
    a + b
    for a, b in product(
        ["Arn", "Bor", "Cald", "Dren", "Fal", "Gor", "Hal", "Kest", "Lor", "Mund"],
        ["ahl", "ek", "fors", "ian", "owe", "uld"],
    )
]
_TOWNS = [
    a + b
    for a, b in product(
        ["Ash", "Brim", "Carr", "Dun", "Elm", "Frost", "Glen", "Holl"],
        ["bury", "dale", "ford", "haven", "mouth", "wick"],
    )
]
_COUNTRIES = [
    a + b
    for a, b in product(["Bel", "Cor", "Dal", "Mor", "Sar", "Tav", "Vel"], ["avia", "donia", "ganda", "istan", "onia"])
]
_FIRMS = [
    a + b
    for a, b in product(
        ["Axo", "Cyr", "Hel", "Lum", "Nov", "Orb", "Quan", "Syn"], ["dyne", "gen", "max", "tron", "vex", "zon"]
    )
]
_KINDS = {
    "person": [],  # built from a given and a family name
    "town": _TOWNS,
    "country": _COUNTRIES,
    "company": _FIRMS,
}
# Each relation: the kinds of its head and tail, and its wordings. The second group has a pronoun for the person.
_RELATIONS: dict[str, tuple[str, str, tuple[str, ...], tuple[str, ...]]] = {
    "born_in": (
        "person",
        "town",
        ("{0} was born in {1}.", "{0}, a native of {1}, came from a large family.", "The birthplace of {0} is {1}."),
        ("{they} was born in {1}.", "{their} birthplace is {1}."),
    ),
    "lives_in": (
        "person",
        "town",
        (
            "{0} lives in {1}.",
            "{0} has a house in {1} and never leaves it.",
            "{1} has been the home of {0} for years.",
        ),
        ("{they} lives in {1} now.", "{their} home is {1}."),
    ),
    "works_for": (
        "person",
        "company",
        ("{0} works for {1}.", "{1} employs {0} as an engineer.", "{0} is on the staff of {1}."),
        ("{they} works for {1}.", "{their} employer is {1}."),
    ),
    "married_to": (
        "person",
        "person",
        ("{0} is married to {1}.", "{0} is the spouse of {1}.", "{0} took {1} in marriage last spring."),
        ("{they} is married to {1}.", "{their} spouse is {1}."),
    ),
    "founded_by": (
        "company",
        "person",
        ("{0} was founded by {1}.", "{1} founded {0}.", "{1} is the founder of {0}."),
        (),
    ),
    "based_in": (
        "company",
        "town",
        ("{0} is based in {1}.", "The head office of {0} is in {1}.", "{1} is the seat of {0}."),
        (),
    ),
    "located_in": (
        "town",
        "country",
        ("{0} is a town in {1}.", "{0} lies in the south of {1}.", "In {1} there is a town called {0}."),
        (),
    ),
}
_SILENT = (
    "{person} had never heard of {town}.",
    "It was raining in {town}.",
    "{company} and {person} could not agree.",
    "Nobody knows whether {person} likes {country}.",
)


def build() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Returns the training and held-out rows, each text once: `prompt` and, as JSON, `completion`."""
    sides: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for number in range(TEXTS):
        held_out = fraction(f"text:{number}") < HELD_OUT_SHARE
        text, triples = _write(str(number), held_out)
        sides[held_out].setdefault(text, json.dumps(triples, ensure_ascii=False))
    rows = [[{"prompt": text, "completion": triples} for text, triples in side.items()] for side in sides]
    return rows[0], rows[1]


def _choose(key: str, items: Sequence[T]) -> T:
    return items[int(fraction(key) * len(items))]


def _side(names: list[str], held_out: bool) -> list[str]:
    """Returns the names of one side; one fifth is held out."""
    ranked = sorted(names, key=lambda name: fraction(f"name:{name}"))
    cut = len(names) // 5
    return ranked[:cut] if held_out else ranked[cut:]


def _name(key: str, kind: str, held_out: bool) -> str:
    if kind == "person":
        return (
            f"{_choose(f'{key}:given', _side(_GIVEN, held_out))} {_choose(f'{key}:family', _side(_FAMILY, held_out))}"
        )
    return _choose(key, _side(_KINDS[kind], held_out))


def _write(key: str, held_out: bool) -> tuple[str, list[dict[str, str]]]:
    """Writes one text and its triples."""
    sentences: list[str] = []
    triples: list[dict[str, str]] = []
    subjects = dict.fromkeys(_KINDS, "")
    they, their = _choose(f"{key}:pronoun", (("She", "Her"), ("He", "His")))
    latest = ""
    names = list(_RELATIONS)
    for step in range(1 + int(fraction(f"{key}:length") * 3)):
        relation = _choose(f"{key}:{step}:relation", [name for name in names if name != latest])
        head_kind, tail_kind, wordings, with_pronoun = _RELATIONS[relation]
        before = subjects[head_kind]
        head = before or _name(f"{key}:{step}:head", head_kind, held_out)
        tail = _name(f"{key}:{step}:tail", tail_kind, held_out)
        if tail == head or any(item["relation"] == relation and item["head"] == head for item in triples):
            continue
        # A pronoun must refer to the head of the previous sentence and to no one else in it.
        follows = bool(triples) and triples[-1]["head"] == head and triples[-1]["relation"] != "married_to"
        words = with_pronoun if follows and with_pronoun and fraction(f"{key}:{step}:they") < 0.5 else wordings
        wording = _choose(f"{key}:{step}:wording", words)
        sentences.append(wording.format(head, tail, they=they, their=their))
        triples.append({"head": head, "relation": relation, "tail": tail})
        subjects[head_kind] = head
        latest = relation
    if fraction(f"{key}:silent") < 1 / 3:
        wording = _choose(f"{key}:silent:wording", _SILENT)
        named = {kind: _name(f"{key}:silent:{kind}", kind, held_out) for kind in _KINDS}
        sentences.append(wording.format(**named))
    return " ".join(sentences), triples

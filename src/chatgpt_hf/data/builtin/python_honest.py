"""`builtin:python-honest`: the conversations of `builtin:python-qa`, and questions about names that do not exist.

The names are invented from parts of real ones: a real member under another class or module (`zipfile.ZipFile.islice`), a new
member made of real words (`shlex.read_quoted`), or a member of a new class (`csv.TokenReader.flush`). No documented name is
among them. Their answer is `UNKNOWN`. The held-out questions ask about real functions that the training part does not explain,
and have the same answer: a model that gives it does not make anything up. The result depends only on the Python release and
platform, like that of `builtin:python-qa`.
"""

import re
from collections.abc import Sequence
from itertools import count
from typing import Any

from .python_docs import build_qa, documented_names, fraction, question_wordings

UNKNOWN = "I don't know that function."
# About half as many as the questions with an answer.
INVENTED = 2000


def build() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the rows of the training part, the invented names last, and of the held-out part."""
    train, test = build_qa()
    names = [row["name"] for row in train if not row["name"].startswith("chat.")]
    rows = [{"name": name, "messages": _refused(question)} for name, question in _invented(names)]
    return train + rows, [{**row, "messages": _refused(row["messages"][0]["content"])} for row in test]


def _refused(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": UNKNOWN}]


def _invented(names: Sequence[str]) -> list[tuple[str, str]]:
    """Names that do not exist, each with a question about it."""
    split = [name.rpartition(".") for name in names if "." in name]
    owners = sorted({owner for owner, _, _ in split})
    modules = [owner for owner in owners if owner[:1].islower() and owner.rpartition(".")[2].islower()]
    members = sorted({member for _, _, member in split})
    # Between capitals and underscores; new names are made of them.
    words = sorted({word.lower() for member in members for word in re.findall(r"[A-Z]?[a-z]{3,}", member)})
    wordings = question_wordings()
    taken = documented_names() | set(names)
    found: dict[str, str] = {}
    for number in count():
        if len(found) == INVENTED:
            break

        def pick(what: str, of: Sequence[str], number: int = number) -> str:
            return of[int(fraction(f"invented {number}: {what}") * len(of))]

        first, second = pick("first", words), pick("second", words)
        new = {"snake": f"{first}_{second}", "joined": f"{first}{second}", "camel": f"{first.title()}{second.title()}"}
        kind = pick("kind", ("real", "real", "new", "new", "class"))
        if kind == "real":
            name = f"{pick('owner', owners)}.{pick('member', members)}"
        elif kind == "new":
            name = f"{pick('owner', owners)}.{new[pick('style', ('snake', 'snake', 'joined', 'camel'))]}"
        else:
            name = f"{pick('module', modules)}.{new['camel']}.{pick('member', members)}"
        if name not in taken:
            taken.add(name)
            found[name] = pick("wording", wordings).format(name)
    return list(found.items())

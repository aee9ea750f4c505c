"""Reads report.json and results.json for a card, and says which of their fields is not what a run or an evaluation writes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CardError
from ..files import read_json
from ..stored import REPORT_FILE

_NUMBER, _TEXT, _TEXTS = "a number", "text", "text or a list of texts"
_TABLE = "a list of objects"
_REPORT = {
    **dict.fromkeys(("description", "command", "task", "base_model"), _TEXT),
    **dict.fromkeys(("data", "datasets", "language"), _TEXTS),
    **dict.fromkeys(("results", "training", "origin"), "an object"),
    **dict.fromkeys(("statistics", "columns"), _TABLE),
}
_RESULTS = dict.fromkeys(("train_runtime", "parameters", "adapter_parameters"), _NUMBER)
_EVALUATION = {"task": _TEXT, "data": _TEXT, "command": _TEXT, "figures": "an object"}
_FIGURE = {"value": _NUMBER, "low": _NUMBER, "high": _NUMBER, "signature": _TEXT}


def read_facts(folder: Path) -> dict[str, Any]:
    """Returns the content of a run's report.json; empty without one.

    Raises:
        CheckpointError: If it cannot be read.
        CardError: If a field is of another kind than a run writes.
    """
    file = folder / REPORT_FILE
    facts = read_json(file)
    _check(file, facts, _REPORT)
    _check(file, facts.get("results") or {}, _RESULTS)
    _check(file, facts.get("training") or {}, {"assumed watts": _NUMBER})
    _check(file, facts.get("origin") or {}, dict.fromkeys(facts.get("origin") or {}, _TEXTS))
    return facts


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """Returns the evaluations by `chatgpt-hf evaluate` in the folder whose command is known.

    Raises:
        CheckpointError: If one cannot be read.
        CardError: If a field is of another kind than `chatgpt-hf evaluate` writes.
    """
    found = {file: read_json(file) for file in sorted(folder.glob("evaluation/*/results.json"))}
    known = {file: evaluation for file, evaluation in found.items() if evaluation.get("command")}
    for file, evaluation in known.items():
        _check(file, evaluation, _EVALUATION, needed=("task", "data", "examples", "figures"))
        _check(
            file,
            evaluation["figures"],
            dict.fromkeys(evaluation["figures"], "an object"),
            needed=evaluation["figures"],
        )
        for figure in evaluation["figures"].values():
            _check(file, figure, _FIGURE, needed=("low", "high") if figure.get("value") is not None else ("value",))
    return list(known.values())


def _check(file: Path, content: Mapping[str, Any], kinds: Mapping[str, str], needed: Any = ()) -> None:
    for name in needed:
        # Without a value, a figure has no interval either.
        if name not in content or (content[name] is None and name != "value"):
            raise CardError(f"{file} has no {name!r}: it was changed or damaged. Make it again, or delete it.")
    for name, kind in kinds.items():
        if (value := content.get(name)) is not None and not _is(value, kind):
            raise CardError(
                f"{file} has {value!r:.80} as {name!r}, which has to be {kind}. Make it again, or delete it."
            )


def _is(value: Any, kind: str) -> bool:
    if kind == _NUMBER:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == _TABLE:
        return isinstance(value, list) and all(isinstance(item, dict) for item in value)
    if kind == _TEXTS and isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return isinstance(value, dict if kind == "an object" else str)

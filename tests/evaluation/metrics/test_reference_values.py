"""Our modules give the documented values in metric_reference_values.json, to the digits printed there."""

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from chatgpt_hf.evaluation.metrics import load_metric

ROWS = 30
NEEDS_WEIGHTS = {
    "perplexity (evaluate), model gpt2, add_start_token=False": "the weights of gpt2",
    "perplexity (evaluate), model gpt2": "the weights of gpt2 and wikitext-2",
    "nanoGPT val loss": "nanoGPT's weights and OpenWebText",
}
# The row itself says that the documentation is out of date.
OUTDATED = {"rouge (evaluate) use_aggregator=False": {"rouge1": "recomputed"}}


def agrees(found: Any, expected: Any) -> bool:
    """True if the value agrees to the last printed digit."""
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(agrees, found, expected))
    digits = -int(Decimal(repr(expected)).as_tuple().exponent)
    return f"{found:.{max(0, digits)}f}" == f"{expected:.{max(0, digits)}f}"


def streams(given: dict[str, Any]) -> dict[str, Any]:
    """Converts `hypotheses` and references by stream to `predictions` and references by example."""
    options = dict(given)
    references = [list(texts) for texts in zip(*options.pop("references_by_stream"), strict=True)]
    return {"predictions": options.pop("hypotheses"), "references": references, **options}


def bleu(given: dict[str, Any]) -> dict[str, Any]:
    found = load_metric("bleu").compute(**streams(given))
    return {**found, "score": found["bleu"]}


def evaluates_bleu(given: dict[str, Any]) -> dict[str, Any]:
    """BLEU from 0 to 1, with the shortest reference's length."""
    found = load_metric("bleu").compute(**given, tokenize="13a", reference_length="shortest")
    return {
        "bleu": found["bleu"] / 100,
        "precisions": [precision / 100 for precision in found["precisions"]],
        "brevity_penalty": found["bp"],
        "length_ratio": found["sys_len"] / found["ref_len"],
        "translation_length": found["sys_len"],
        "reference_length": found["ref_len"],
    }


def averages(given: dict[str, Any]) -> dict[str, Any]:
    names = {"macro": "macro", "micro": "micro", "weighted": "weighted", "none": None}
    return {name: load_metric("f1").compute(**given, average=average)["f1"] for name, average in names.items()}


def plain(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda given: load_metric(name).compute(**given)


HOW: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "sacrebleu.corpus_bleu": bleu,
    "bleu (evaluate, 0-1 scale, 13a)": evaluates_bleu,
    "chrf": lambda given: load_metric("chrf").compute(**streams(given)),
    "ter": lambda given: load_metric("ter").compute(**streams(given)),
    "rouge (evaluate) use_aggregator=False": lambda given: load_metric("rouge").compute(**given, use_aggregator=False),
    "rouge multi-reference (evaluate)": plain("rouge"),
    "f1": plain("f1"),
    "f1 macro/micro/weighted/None": averages,
    "accuracy": plain("accuracy"),
    "exact_match": plain("exact_match"),
    "seqeval": plain("seqeval"),
}


@pytest.mark.parametrize("index", range(ROWS))
def test_row(index: int, shared_data: Path) -> None:
    rows = json.loads((shared_data / "reference" / "metric_reference_values.json").read_text(encoding="utf-8"))
    assert len(rows) == ROWS
    row = rows[index]
    name = row["metric"]
    if name in NEEDS_WEIGHTS:
        pytest.skip(f"{name}: needs {NEEDS_WEIGHTS[name]}")
    found, expected = HOW[name](row["input"]), row["expected"]
    if not isinstance(expected, dict):
        key = {"sacrebleu.corpus_bleu": "bleu"}.get(name, name)
        expected = {key: expected}
    for key, value in expected.items():
        if (column := OUTDATED.get(name, {}).get(key)) is not None:
            assert "out of date" in row["note"]
            value = row[column]
        assert agrees(found[key], value), (key, found[key], value)
    if name == "sacrebleu.corpus_bleu":
        assert found["bleu"] == pytest.approx(row["recomputed"], abs=1e-12)

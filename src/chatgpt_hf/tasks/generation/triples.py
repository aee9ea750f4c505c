"""Scores relations written as JSON: whether a text parses, and which of its triples are right."""

from collections.abc import Sequence

import numpy as np

from ...evaluation.figures import Measure
from ...parsing import parse_json

Triple = tuple[str, str, str]
_KEYS = ("head", "relation", "tail")


def parse_triples(text: str) -> set[Triple] | None:
    """Parses the triples of `[{"head": ..., "relation": ..., "tail": ...}, ...]`; None for any other text."""
    try:
        rows = parse_json(text)
    except ValueError:
        return None
    if not isinstance(rows, list):
        return None
    triples = set()
    for row in rows:
        if not isinstance(row, dict) or set(row) != set(_KEYS) or not all(isinstance(row[key], str) for key in _KEYS):
            return None
        triples.add((row["head"], row["relation"], row["tail"]))
    return triples


def relation_measures(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Measure]:
    """Measures F1 of triples over all texts, and the share of answers that parse; others have no triples."""
    counts, parsed = [], []
    for said, right in zip(predictions, references, strict=True):
        found, true = parse_triples(said), parse_triples(right) or set()
        parsed.append([float(found is not None), 1.0])
        counts.append([len((found or set()) & true), len(found or set()), len(true)])
    return {"triple_f1": Measure("f1", np.array(counts)), "parses": Measure("mean", np.array(parsed))}

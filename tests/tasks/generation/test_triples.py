"""Checks which relations parse as JSON, and which triples are right."""

import json

import pytest

from chatgpt_hf.tasks.generation.triples import parse_triples, relation_measures

TRIPLE = {"head": "Ann", "relation": "works at", "tail": "Acme"}


@pytest.mark.parametrize(
    "text",
    ["", "[", '{"head": "Ann"}', '[{"head": "Ann", "tail": "Acme"}]', '[{"head": 1, "relation": "", "tail": ""}]'],
)
def test_what_is_no_list_of_triples(text: str) -> None:
    assert parse_triples(text) is None


def test_figures() -> None:
    other = {**TRIPLE, "tail": "Beta"}
    right = [json.dumps([TRIPLE, other]), json.dumps([TRIPLE]), json.dumps([])]
    said = [json.dumps([TRIPLE]), json.dumps([other, TRIPLE]), "no JSON"]
    figures = {name: measure.value for name, measure in relation_measures(said, right).items()}
    # Two of three predicted triples are right, and two of three true ones are found.
    assert figures == pytest.approx({"triple_f1": 2 / 3, "parses": 2 / 3})

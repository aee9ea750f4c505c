"""Entities, compared with seqeval's own report."""

from pathlib import Path

import numpy as np
import pytest
import seqeval.scheme
from seqeval.metrics import accuracy_score, classification_report, f1_score

from chatgpt_hf.errors import DataError
from chatgpt_hf.evaluation.metrics import load_metric, measures

Tags = list[list[str]]


def read(file: Path, count: int = 500) -> Tags:
    blocks = file.read_text(encoding="utf-8").split("\n\n")[:count]
    return [[line.split()[-1] for line in block.splitlines() if line.strip()] for block in blocks if block.strip()]


def disturbed(tags: Tags) -> Tags:
    """Changes tags: some are lost, some get another type, and some begin a new entity."""
    random = np.random.default_rng(0)
    other = {"PER": "ORG", "person": "location"}

    def one(tag: str) -> str:
        chance = random.random()
        if chance < 0.1:
            return "O"
        if tag != "O" and chance < 0.25:
            return "B" + tag[1:]
        return tag[:2] + other.get(tag[2:], tag[2:]) if chance < 0.3 else tag

    return [[one(tag) for tag in row] for row in tags]


@pytest.mark.parametrize(
    ("file", "scheme"),
    [
        ("wikigold_a.conll", None),
        ("wikigold_a.conll", "IOB1"),
        ("wnut17_dev.conll", None),
        ("wnut17_dev.conll", "IOB2"),
    ],
)
def test_as_seqeval(file: str, scheme: str | None, shared_data: Path) -> None:
    true = read(shared_data / "ner" / file)
    said = disturbed(true)
    options = {"mode": "strict", "scheme": getattr(seqeval.scheme, scheme)} if scheme else {}
    report = classification_report(true, said, output_dict=True, zero_division=0, **options)
    found = load_metric("seqeval").compute(predictions=said, references=true, scheme=scheme)
    overall = report.pop("micro avg")
    for name, key in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        assert found.pop(f"overall_{name}") == pytest.approx(overall[key])
        for kind, values in report.items():
            if not kind.endswith(" avg"):
                assert found[kind][name] == pytest.approx(values[key])
                assert found[kind]["number"] == values["support"]
    assert found.pop("overall_accuracy") == pytest.approx(accuracy_score(true, said))
    assert found.keys() == {kind for kind in report if not kind.endswith(" avg")}


def test_measures(shared_data: Path) -> None:
    true = read(shared_data / "ner" / "wnut17_dev.conll")
    said = disturbed(true)
    found = measures("seqeval", said, true)
    rows = np.random.default_rng(0).integers(len(true), size=len(true))
    resampled = float(found["overall_f1"].of(found["overall_f1"].statistics[rows].sum(0)))
    assert resampled == pytest.approx(f1_score([true[row] for row in rows], [said[row] for row in rows]))
    assert {"f1_person", "f1_location"} < found.keys()


@pytest.mark.parametrize(
    ("tag", "expected"), [("I-PER", {None: 1, "IOB1": 1, "IOB2": 0}), ("B-PER", {None: 1, "IOB1": 0, "IOB2": 1})]
)
def test_schemes_differ(tag: str, expected: dict[str | None, int]) -> None:
    """After O, an entity begins with I in IOB1 and with B in IOB2; CoNLL's script accepts both."""
    for scheme, count in expected.items():
        assert (
            measures("seqeval", [["O", tag, "O"]], [["O"] * 3], scheme=scheme)["overall_f1"].statistics[0, 1] == count
        )


def test_a_tag_of_another_scheme() -> None:
    with pytest.raises(DataError, match="The tags E-PER do not follow the scheme IOB2"):
        measures("seqeval", [["E-PER"]], [["O"]], scheme="IOB2")


def test_no_entities() -> None:
    found = load_metric("seqeval").compute(predictions=[["O"]], references=[["O"]])
    assert found == {"overall_f1": 0, "overall_precision": 0, "overall_recall": 0, "overall_accuracy": 1}

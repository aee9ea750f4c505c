"""Exact match, to the letter and with SQuAD's normalization."""

from typing import Any

import pytest

from chatgpt_hf.evaluation.metrics import load_metric


@pytest.mark.parametrize(
    ("prediction", "reference", "options", "expected"),
    [
        ("The cat.", "cat", {}, 0),
        ("The cat.", "cat", {"squad": True}, 1),
        ("a  theory,\tthe", "theory", {"squad": True}, 1),
        ("another", "other", {"squad": True}, 0),
        ("“北京”。", "北京", {"squad": True}, 1),
        ("“北京”。", "北京", {"ignore_punctuation": True}, 1),
        ("北京", "北 京", {"squad": True}, 0),
        ("x", ["y", "x"], {}, 1),
        ("x", ["y", "z"], {}, 0),
        ("", "", {}, 1),
        ("1,000 men", "2 men", {"ignore_numbers": True, "ignore_punctuation": True}, 1),
    ],
)
def test_match(prediction: str, reference: Any, options: dict[str, Any], expected: int) -> None:
    found = load_metric("exact_match").compute(predictions=[prediction], references=[reference], **options)
    assert found == {"exact_match": expected}

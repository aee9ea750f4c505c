"""What several processes share gives the results of one, to the bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatgpt_hf.checkpoints import load_model
from chatgpt_hf.evaluation.generation import generate_completions
from chatgpt_hf.evaluation.language_modeling import evaluate_language_modeling
from chatgpt_hf.evaluation.sharing import Share, shared
from chatgpt_hf.tokenization_chatgpt import load_tokenizer

TEXTS = [f"Once upon a time there were {count} cats." * (1 + count % 3) for count in range(7)]


class _Stop(Exception):
    pass


def in_two_processes(compute: Callable[[], Any]) -> tuple[Any, list[Any]]:
    """Runs a computation as process 0 of two, after process 1 has done its part; returns the result and both parts."""
    parts: list[Any] = []

    def keep(value: Any) -> list[Any]:
        parts.append(value)
        raise _Stop

    with shared(Share(1, 2, keep)), pytest.raises(_Stop):
        compute()
    with shared(Share(0, 2, lambda value: [*(parts.insert(0, value) or parts)])):  # type: ignore[func-returns-value]
        return compute(), parts


def test_scores_and_answers(base_folder: Path) -> None:
    model, tokenizer = load_model(base_folder), load_tokenizer(base_folder)

    def score() -> np.ndarray:
        return evaluate_language_modeling(model, tokenizer, TEXTS, batch_size=2, progress=False).nats

    together, parts = in_two_processes(score)
    assert np.array_equal(together, score())
    # Each text is scored once, by one of them.
    assert sorted(parts[0][0] + parts[1][0]) == list(range(len(TEXTS)))
    assert min(len(indices) for indices, _ in parts) > 1

    prompts = [tokenizer(text)["input_ids"][:12] for text in TEXTS]

    def answer(**options: Any) -> list[Any]:
        common: dict[str, Any] = {"max_new_tokens": 4, "batch_size": 2, "progress": False, "desc": ""}
        return generate_completions(model, tokenizer, prompts, **common, **options)

    together, parts = in_two_processes(lambda: answer(do_sample=False))
    assert together == answer(do_sample=False)
    assert sorted(index for part in parts for index, _ in part) == list(range(len(TEXTS)))

    def fails(value: Any) -> list[Any]:
        raise AssertionError("drawn answers are not shared: a batch's numbers depend on those before it")

    with shared(Share(0, 2, fails)):
        assert len(answer(do_sample=True)) == len(prompts)

"""Every answer is found again in the window that contains it, in whole characters."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from chatgpt_hf import train_tokenizer
from chatgpt_hf.errors import DataError
from chatgpt_hf.model.spans import SpanError, answer_positions, best_answers, context_windows
from chatgpt_hf.tasks.question_answering.features import prepare_features
from chatgpt_hf.tasks.question_answering.rows import load_squad
from chatgpt_hf.tokenization_chatgpt import load_tokenizer

CONTEXT = "罗马在意大利。 Paris, 法国 👍🏽 the <|endoftext|> capital; " * 6


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    # With so few merges, every Chinese character is three tokens.
    return train_tokenizer(["the capital is Paris, Rome"] * 4, 280, show_progress=False)


def row(answer: str, start: int, context: str = CONTEXT, identity: str = "a") -> dict[str, Any]:
    answers = {"text": [answer] if answer else [], "answer_start": [start] if answer else []}
    return {"id": identity, "question": "Where is Rome?", "context": context, "answers": answers}


def evaluation_features(rows: Dataset, tokenizer: PreTrainedTokenizerBase, **lengths: int) -> Dataset:
    found = context_windows(rows["question"], rows["context"], tokenizer, **lengths)
    rows_of_windows = [
        {"example_id": identity, "offset_mapping": window.offsets, "input_ids": window.input_ids}
        for identity, of_a_question in zip(rows["id"], found, strict=True)
        for window in of_a_question
    ]
    return Dataset.from_list(rows_of_windows)


def logits_for(features: Dataset, spans: dict[int, tuple[int, int, float]]) -> list[list[np.ndarray]]:
    """Makes logits with the given height at the first and last token of some features, and 0 elsewhere."""
    made = [[np.zeros(len(ids)) for ids in features["input_ids"]] for _ in range(2)]
    for feature, (first, last, height) in spans.items():
        made[0][feature][first] = made[1][feature][last] = height
    return made


def test_windows_cover_a_context_with_their_overlap(tokenizer: PreTrainedTokenizerBase) -> None:
    (found,) = context_windows(["Where is Rome?"], [CONTEXT], tokenizer, max_length=64, stride=16)
    ids = tokenizer(CONTEXT, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    prefix = tokenizer("Where is Rome?\n", add_special_tokens=False)["input_ids"]
    room = 64 - 1 - len(prefix)
    pieces = []
    for window in found:
        assert window.input_ids[: 1 + len(prefix)] == [tokenizer.bos_token_id, *prefix]
        assert window.offsets[: 1 + len(prefix)] == [None] * (1 + len(prefix))
        assert None not in window.offsets[1 + len(prefix) :]
        assert len(window.offsets) == len(window.input_ids) <= 64
        pieces.append(window.input_ids[1 + len(prefix) :])
    assert len(pieces) > 2
    for before, after in pairwise(pieces):
        assert len(before) == room
        assert before[-16:] == after[:16]
    assert pieces[0] + [token for piece in pieces[1:] for token in piece[16:]] == ids
    # No window only repeats the one before.
    assert len(pieces[-1]) > 16
    assert tokenizer.eos_token_id not in ids
    (single,) = context_windows(["Where is Rome?"], ["Short."], tokenizer, max_length=64, stride=63)[0]
    assert tokenizer.decode(single.input_ids) == "<|endoftext|>Where is Rome?\nShort."


@pytest.mark.parametrize("answer", ["意大利", "罗", "Paris", "👍🏽", "<|endoftext|>", "法国 👍", "the"])
def test_answers_come_back_from_their_tokens(tokenizer: PreTrainedTokenizerBase, answer: str) -> None:
    start = CONTEXT.index(answer, 60)
    rows = Dataset.from_list([row(answer, start)])
    trained = prepare_features(rows, tokenizer, max_length=96, stride=48)
    features = evaluation_features(rows, tokenizer, max_length=96, stride=48)
    assert len(trained) == len(features) > 1
    labelled = [
        (index, first, last)
        for index, (first, last) in enumerate(zip(trained["start_positions"], trained["end_positions"], strict=True))
        if first
    ]
    assert labelled
    for index, first, last in labelled:
        logits = logits_for(features, {index: (first, last, 9.0)})
        best = best_answers(features, *logits, {"a": CONTEXT}, max_answer_length=60)["a"][0]
        assert (best.text, best.start, best.end) == (answer, start, start + len(answer))
        assert 0 < best.score <= 1


def test_an_answer_that_a_window_cuts_is_none_there(tokenizer: PreTrainedTokenizerBase) -> None:
    context = "a b c d e f g h i j k l m n o p"
    (found,) = context_windows(["?"], [context], tokenizer, max_length=21, stride=4)
    spans = [answer_positions(window, 8, 13) for window in found]  # "e f g"
    texts = [
        context[window.offsets[first][0] : window.offsets[last][1]] if first else None
        for window, (first, last) in zip(found, spans, strict=True)
    ]
    assert {text for text in texts if text} == {"e f g"}
    assert None in texts
    # This answer is longer than any window.
    rows = Dataset.from_list([row(context, 0, context)])
    trained = prepare_features(rows, tokenizer, max_length=21, stride=4)
    assert set(trained["start_positions"]) == set(trained["end_positions"]) == {0}


def test_no_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = Dataset.from_list([row("", 0)])
    trained = prepare_features(rows, tokenizer, max_length=96, stride=48)
    assert set(trained["start_positions"]) == {0}
    features = evaluation_features(rows, tokenizer, max_length=96, stride=48)
    spans = dict.fromkeys(range(len(features)), (0, 0, 9.0))
    answer = best_answers(features, *logits_for(features, spans), {"a": CONTEXT}, allow_no_answer=True)["a"][0]
    assert (answer.text, answer.start, answer.end) == ("", 0, 0)
    assert answer.score > 0.9
    assert best_answers(features, *logits_for(features, spans), {"a": CONTEXT})["a"][0].text
    # One window with an answer is enough.
    inside = next(index for index, offset in enumerate(features[0]["offset_mapping"]) if offset)
    spans[0] = (inside, inside, 5.0)
    found = best_answers(features, *logits_for(features, spans), {"a": CONTEXT}, allow_no_answer=True)["a"][0]
    assert found.text == "罗"
    # A question without a window, or whose context is white space, has the empty answer.
    assert best_answers([], [], [], {"a": CONTEXT})["a"] == [("", 1.0, 0, 0)]


def test_parts_of_a_character_are_one_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    features = evaluation_features(Dataset.from_list([row("", 0, "罗马")]), tokenizer)
    logits = [[np.zeros(len(features[0]["input_ids"]))] for _ in range(2)]
    answers = best_answers(features, *logits, {"a": "罗马"})["a"]
    assert sorted(answer.text for answer in answers) == ["罗", "罗马", "马"]
    assert sum(answer.score for answer in answers) == pytest.approx(1)
    short = best_answers(features, *logits, {"a": "罗马"}, max_answer_length=2)["a"]
    # The last byte of one character and the first of the next both expand to whole characters.
    assert "罗马" in [answer.text for answer in short]


def test_padding_on_the_right_changes_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    features = evaluation_features(Dataset.from_list([row("", 0)]), tokenizer, max_length=96, stride=48)
    random = np.random.default_rng(0)
    logits = [[random.normal(size=len(ids)) for ids in features["input_ids"]] for _ in range(2)]
    padded = [[np.concatenate([values, [99.0] * 7]) for values in half] for half in logits]
    expected = best_answers(features, *logits, {"a": CONTEXT})
    assert best_answers(features, *padded, {"a": CONTEXT}) == expected
    with pytest.raises(SpanError, match="start logits"):
        best_answers(features, logits[0][1:], logits[1], {"a": CONTEXT})


def test_best_answers_is_the_best_of_all_spans(tokenizer: PreTrainedTokenizerBase) -> None:
    features = evaluation_features(Dataset.from_list([row("", 0)]), tokenizer, max_length=96, stride=48)
    random = np.random.default_rng(1)
    logits = [[random.normal(size=len(ids)) for ids in features["input_ids"]] for _ in range(2)]
    best = (-np.inf, "")
    for offsets, starts, ends in zip(features["offset_mapping"], *logits, strict=True):
        for first, start in enumerate(offsets):
            for last in range(first, min(first + 12, len(offsets))):
                if start and (text := CONTEXT[start[0] : offsets[last][1]].strip()):
                    best = max(best, (float(starts[first] + ends[last]), text))
    found = best_answers(features, *logits, {"a": CONTEXT}, n_best=1000, max_answer_length=12)["a"]
    top = best_answers(features, *logits, {"a": CONTEXT}, n_best=1, max_answer_length=len(CONTEXT))
    assert len(top["a"]) == 1
    assert best[1] in [answer.text for answer in found[:5]]


def test_real_questions(shared_data: Path) -> None:
    tokenizer = load_tokenizer(shared_data / "gpt2_tokenizer")
    for name in ("xquad_en_a", "xquad_zh_a"):
        rows = load_squad(str(shared_data / f"qa/{name}.json")).train.select(range(60))
        trained = prepare_features(rows, tokenizer, max_length=384, stride=128)
        features = evaluation_features(rows, tokenizer, max_length=384, stride=128)
        assert max(map(len, features["input_ids"])) <= 384
        spans = {
            index: (first, last, 9.0)
            for index, (first, last) in enumerate(
                zip(trained["start_positions"], trained["end_positions"], strict=True)
            )
            if first
        }
        assert {features[index]["example_id"] for index in spans} == set(rows["id"])
        contexts = dict(zip(rows["id"], rows["context"], strict=True))
        found = best_answers(features, *logits_for(features, spans), contexts, max_answer_length=200)
        for item in rows:
            assert found[item["id"]][0].text == item["answers"]["text"][0].strip()


def test_what_cannot_be_cut(tokenizer: PreTrainedTokenizerBase, shared_data: Path) -> None:
    with pytest.raises(SpanError, match="raise max_length"):
        context_windows(["Where is Rome? " * 9], [CONTEXT], tokenizer, max_length=64, stride=16)
    with pytest.raises(SpanError, match="a stride of 60"):
        context_windows(["Where is Rome?"], [CONTEXT], tokenizer, max_length=64, stride=60)
    nameless = load_tokenizer(shared_data / "gpt2_tokenizer")
    nameless.bos_token = None
    with pytest.raises(SpanError, match="bos token"):
        context_windows(["Where?"], [CONTEXT], nameless)
    assert context_windows([], [], tokenizer) == []
    lacking = Dataset.from_list([row("", 0)])
    with pytest.raises(DataError, match="raise max_length"):
        prepare_features(lacking, tokenizer, max_length=8, stride=4)

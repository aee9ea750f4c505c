"""A classifier as a moderator, with a tiny model that recognizes `xx`."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import pipeline

from chatgpt_hf import ChatGPTConfig, ChatGPTForSequenceClassification, load_tokenizer
from chatgpt_hf.errors import CheckpointError, ConfigError, ContentFiltered
from chatgpt_hf.moderation import Classifier, Moderators, WordList, load_moderator

LABELS = {0: "fine", 1: "rude", 2: "violent"}


@pytest.fixture(scope="module")
def classifier_folder(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 32 positions that has learned to distinguish texts with `xx` from others."""
    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = load_tokenizer(base_folder)
    labels = {"id2label": LABELS, "label2id": {label: index for index, label in LABELS.items()}}
    config = ChatGPTConfig.from_pretrained(base_folder, max_position_embeddings=32, num_labels=3, **labels)
    torch.manual_seed(0)
    model = ChatGPTForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    bad = tokenizer("xx", add_special_tokens=False)["input_ids"]
    for _ in range(150):
        ids = torch.randint(len(tokenizer), (32, 32))
        labels = torch.arange(32) % 2
        ids[(ids == bad[0])] = 5
        for row in range(1, 32, 2):
            at = int(torch.randint(32 - len(bad), ()))
            ids[row, at : at + len(bad)] = torch.tensor(bad)
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pieces(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def blocked(classifier: Classifier, text: str) -> bool:
    try:
        classifier.check(text)
    except ContentFiltered:
        return True
    return False


def test_messages(classifier_folder: Path) -> None:
    classifier = Classifier(classifier_folder, labels=["rude", "violent"])
    assert not blocked(classifier, "The cat sits in the garden.")
    assert blocked(classifier, "The cat xx sits.")
    assert not blocked(classifier, "")
    long = "The cat sits in the garden. " * 30
    for words in (0, 7, 15, 29):
        at = 28 * words
        assert blocked(classifier, long[:at] + "xx " + long[at:]), "every window is read"
    assert not blocked(classifier, long)
    # Only the given labels are blocked, and only from the threshold.
    assert not blocked(Classifier(classifier_folder, labels=["violent"]), "The cat xx sits.")
    assert blocked(Classifier(classifier_folder, labels=["violent"], threshold=1e-9), "The cat sits.")


def test_several_threads_ask_at_once(classifier_folder: Path) -> None:
    classifier = Classifier(classifier_folder, labels=["rude"])
    texts = ["The cat sits in the garden. " * (1 + i % 4) + ("xx " if i % 2 else "") for i in range(64)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: blocked(classifier, text), texts)) == [bool(i % 2) for i in range(64)]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_answers_are_shown_by_sentence(classifier_folder: Path, size: int) -> None:
    classifier = Classifier(classifier_folder, labels=["rude"])
    filter_ = classifier.filter()
    text = "A cat. It is red...\n它在花园里。The dog xx runs. Others"
    shown = "".join(filter_.feed(piece) for piece in pieces(text, size))
    assert shown == "A cat. It is red...\n它在花园里。"
    assert filter_.finish_reason == "content_filter"
    filter_ = classifier.filter()
    text = "A cat. It is red." + " The dog runs around the garden" * 9
    assert "".join(filter_.feed(piece) for piece in pieces(text, size)) == text[: 17 + 200]
    assert filter_.finish() == text[17 + 200 :]
    assert filter_.finish_reason is None


def test_a_sentence_longer_than_the_model_reads(classifier_folder: Path) -> None:
    filter_ = Classifier(classifier_folder, labels=["rude"]).filter()
    assert filter_.feed("xx" + " The dog runs around the garden" * 9) == ""
    assert filter_.finish_reason == "content_filter"


def test_nothing_is_shown_before_it_was_read(classifier_folder: Path) -> None:
    filter_ = Classifier(classifier_folder, labels=["rude"]).filter()
    assert [filter_.feed(piece) for piece in ("A ca", "t is", " red", ". It", " is")] == [
        "",
        "",
        "",
        "A cat is red.",
        "",
    ]
    assert filter_.finish() == " It is"
    filter_ = Classifier(classifier_folder, labels=["rude"]).filter()
    assert filter_.feed("xx") + filter_.finish() == ""
    assert filter_.finish_reason == "content_filter"


def test_labels_are_needed(classifier_folder: Path) -> None:
    known = r"Its labels are: 'fine', 'rude', 'violent'\."
    with pytest.raises(ConfigError, match="needs the labels to block. " + known):
        Classifier(classifier_folder)
    with pytest.raises(ConfigError, match="has no label 'Rude'. " + known):
        load_moderator(str(classifier_folder), labels=["rude", "Rude"])
    with pytest.raises(ConfigError, match="threshold is 2"):
        Classifier(classifier_folder, labels=["rude"], threshold=2)


def test_models_that_are_none(base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"with a trained head.*score\.weight"):
        load_moderator(str(base_folder), labels=["LABEL_0"])
    with pytest.raises(CheckpointError, match="no folder"):
        load_moderator(str(tmp_path / "nowhere"), labels=["LABEL_0"])


def test_the_log_says_why_and_not_what(classifier_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "chatgpt_hf.moderation")
    assert blocked(Classifier(classifier_folder, labels=["rude"]), "The cat xx sits.")
    Classifier(classifier_folder, labels=["rude"], log_text=True).filter().feed("The dog xx sits.")
    first, second = [record.getMessage() for record in caplog.records if record.name == "chatgpt_hf.moderation"]
    score = pipeline("text-classification", str(classifier_folder))("The cat xx sits.")[0]["score"]
    assert first == f"blocked input: model {classifier_folder}, label rude, score {score:.3f}"
    assert "cat" not in first.removeprefix(f"blocked input: model {classifier_folder}")
    assert second.startswith("blocked output")
    assert second.endswith(": 'The dog xx sits.'")


def test_several(classifier_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("twit\n", encoding="utf-8")
    words = load_moderator(str(file))
    assert isinstance(words, WordList)
    both = Moderators([words, load_moderator(str(classifier_folder), labels=["rude"])])
    both.check("A cat.")
    for text in ("A twit.", "A xx."):
        with pytest.raises(ContentFiltered):
            both.check(text)
        filter_ = both.filter()
        assert filter_.feed("Yes. " + text + " No.") + filter_.finish() == ("Yes." if "xx" in text else "Yes. A ")
        assert filter_.finish_reason == "content_filter"

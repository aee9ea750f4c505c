from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from chatgpt_hf import train_tokenizer
from chatgpt_hf.data import prepare
from chatgpt_hf.data.packing import pack_documents, tokenize_corpus
from chatgpt_hf.data.prepare import PreparedRows, SourceStatistics, prepare_rows, tokenizer_fingerprint
from chatgpt_hf.errors import ConfigError, DataError
from chatgpt_hf.tokenization_chatgpt import encode_documents

TEXTS = [f"Document {number} of a small corpus, 文 {number * number}." for number in range(40)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS, 280, show_progress=False)


@pytest.fixture
def documents() -> Dataset:
    return Dataset.from_dict({"text": TEXTS, "source": ["b"] * 30 + ["a"] * 10})


def tokenized(monkeypatch: pytest.MonkeyPatch, *arguments: Any, **options: Any) -> bool:
    """True if a call tokenizes anything."""
    calls = []
    encode = prepare.encode_document_arrays
    monkeypatch.setattr(prepare, "encode_document_arrays", lambda *a: calls.append(a) or encode(*a))
    prepare_rows(*arguments, **options)
    monkeypatch.undo()
    return bool(calls)


def test_rows_are_those_of_pack_documents(
    documents: Dataset, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    prepared = prepare_rows(documents, tokenizer, 32, seed=3, cache_dir=tmp_path)
    pad = tokenizer.pad_token_id
    expected = pack_documents(tokenize_corpus(documents, tokenizer), 32, pad_token_id=pad, seed=3)
    assert prepared.rows[:] == expected[:]
    padding = sum(ids.count(pad) for ids in expected["input_ids"])
    assert prepared.share_of_positions_used == 1 - padding / (32 * len(expected))


def test_statistics(documents: Dataset, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    prepared = prepare_rows(documents, tokenizer, 32, cache_dir=tmp_path)
    ids = encode_documents(tokenizer, TEXTS)
    size = [len(text.encode()) for text in TEXTS]
    assert prepared.statistics == [
        SourceStatistics("b", 30, sum(size[:30]), sum(map(len, ids[:30]))),
        SourceStatistics("a", 10, sum(size[30:]), sum(map(len, ids[30:]))),
    ]
    assert prepared.statistics[0].bytes_per_token == sum(size[:30]) / sum(map(len, ids[:30]))


def test_what_has_not_changed_is_not_tokenized_again(
    documents: Dataset, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changes(*arguments: Any, **options: Any) -> bool:
        return tokenized(monkeypatch, *arguments, cache_dir=tmp_path, **options)

    assert changes(documents, tokenizer, 32)
    assert not changes(documents, tokenizer, 32)
    # A different object with the same content, and a tokenizer that has been used in between.
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=5)
    assert not changes(Dataset.from_list(documents.to_list()), tokenizer, 32, num_proc=1)
    folder = tmp_path / "tokenizer"
    tokenizer.save_pretrained(folder)
    assert not changes(documents, AutoTokenizer.from_pretrained(folder), 32)
    assert changes(documents, tokenizer, 33)
    assert changes(documents, tokenizer, 32, seed=1)
    assert changes(documents.select(range(39)), tokenizer, 32)
    renamed = Dataset.from_dict({"text": TEXTS, "source": ["c"] * 40})
    assert changes(renamed, tokenizer, 32)
    assert changes(documents, train_tokenizer(TEXTS, 279, show_progress=False), 32)


def test_the_fingerprint_is_of_the_corpus_alone(
    documents: Dataset, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    other = train_tokenizer(TEXTS, 275, show_progress=False)
    prints = [prepare_rows(documents, each, 32, cache_dir=tmp_path).fingerprint for each in (tokenizer, other)]
    assert prints[0] == prints[1]
    moved = Dataset.from_dict({"text": [TEXTS[0] + TEXTS[1][:1], TEXTS[1][1:]], "source": ["a", "a"]})
    kept = Dataset.from_dict({"text": TEXTS[:2], "source": ["a", "a"]})
    first, second = (prepare_rows(each, tokenizer, 32, cache_dir=tmp_path).fingerprint for each in (moved, kept))
    assert first != second
    assert tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(other)


@pytest.mark.parametrize("damage", ["cut", "no rows", "no statistics", "bad statistics", "other format"])
def test_a_damaged_folder_is_made_again(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    expected = prepare_rows(documents, tokenizer, 32, cache_dir=tmp_path).rows[:]
    (folder,) = tmp_path.iterdir()
    rows, statistics = folder / "rows.arrow", folder / "statistics.json"
    if damage == "cut":
        rows.write_bytes(rows.read_bytes()[:-100])
    elif damage == "no rows":
        rows.unlink()
    elif damage == "no statistics":
        statistics.unlink()
    else:
        statistics.write_text("{" if damage == "bad statistics" else "[]")
    assert tokenized(monkeypatch, documents, tokenizer, 32, cache_dir=tmp_path)
    assert prepare_rows(documents, tokenizer, 32, cache_dir=tmp_path).rows[:] == expected
    assert sorted(path.name for path in folder.iterdir()) == ["rows.arrow", "statistics.json"]


def test_a_failure_leaves_nothing_that_is_taken_for_rows(
    documents: Dataset, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare, "rows_table", fail)
    with pytest.raises(Exception, match="No space left on device"):
        prepare_rows(documents, tokenizer, 32, cache_dir=tmp_path)
    monkeypatch.undo()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert isinstance(prepare_rows(documents, tokenizer, 32, cache_dir=tmp_path), PreparedRows)


def test_the_cache_is_where_the_environment_says(
    documents: Dataset, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATGPT_HF_CACHE", str(tmp_path / "cache"))
    prepare_rows(documents, tokenizer, 32)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_several_processes_give_the_same_rows(
    documents: Dataset, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    one, two = (
        prepare_rows(documents, tokenizer, 32, num_proc=number, cache_dir=tmp_path / str(number)).rows[:]
        for number in (1, 2)
    )
    assert one == two


def test_nothing_to_prepare(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, documents: Dataset) -> None:
    with pytest.raises(ConfigError, match="block_size is 1"):
        prepare_rows(documents, tokenizer, 1, cache_dir=tmp_path)
    empty = documents.select([])
    with pytest.raises(DataError, match="no documents"):
        prepare_rows(empty, tokenizer, 8, cache_dir=tmp_path)

"""Packed rows are full, have every token once, and keep documents from seeing each other."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, Trainer, TrainingArguments, default_data_collator

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, load_corpus, load_model, pack_documents, train_tokenizer
from chatgpt_hf.checkpoints import check_tokenizer_fits
from chatgpt_hf.data import packing
from chatgpt_hf.data.packing import IGNORE_INDEX, iterate_rows, tokenize_corpus
from chatgpt_hf.errors import ConfigError, DataError, TokenizerError

PAD = 1


def documents(*lengths: int, first: int = 2) -> Dataset:
    """Makes documents in which all tokens differ, so that each can be traced."""
    ids, start = [], first
    for length in lengths:
        ids.append(list(range(start, start + length)))
        start += length
    return Dataset.from_dict({"input_ids": ids})


def pack(dataset: Dataset, block_size: int, **options: Any) -> Dataset:
    return pack_documents(dataset, block_size, pad_token_id=PAD, **options)


def pieces(row: dict[str, list[int]]) -> list[list[int]]:
    """Cuts a row into documents where positions restart; leaves out padding."""
    starts = [index for index, position in enumerate(row["position_ids"]) if position == 0] + [len(row["input_ids"])]
    cut = [row["input_ids"][begin:end] for begin, end in pairwise(starts)]
    return [piece for piece in cut if piece[0] != PAD]


@settings(max_examples=25)
@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=30),
    st.integers(2, 24),
    st.integers(0, 3),
    st.sampled_from([40, 1 << 21]),
)
def test_every_token_is_predicted_exactly_once(
    lengths: list[int], block_size: int, seed: int, window_tokens: int
) -> None:
    lengths = [*lengths, 2]
    dataset = documents(*lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_WINDOW_TOKENS", window_tokens)
        rows = pack(dataset, block_size, seed=seed)

    learned = sorted(label for row in rows for label in row["labels"] if label != IGNORE_INDEX)
    assert learned == sorted(token for document in dataset["input_ids"] for token in document[1:])
    assert len(learned) == sum(length - 1 for length in lengths)
    for row in rows:
        assert len(row["input_ids"]) == len(row["labels"]) == len(row["position_ids"]) == block_size
        for piece in pieces(row):
            assert piece == list(range(piece[0], piece[0] + len(piece))), "two documents share a run of positions"
        for token, label, position in zip(row["input_ids"], row["labels"], row["position_ids"], strict=True):
            assert label == (IGNORE_INDEX if position == 0 or token == PAD else token)
    # A token occurs twice only where a document was cut: at the end of one piece and the start of the next.
    found = [piece for row in rows for piece in pieces(row)]
    repeated = {token for token, count in Counter(token for piece in found for token in piece).items() if count > 1}
    assert repeated <= {piece[0] for piece in found} & {piece[-1] for piece in found}


@settings(max_examples=15)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=30), st.integers(2, 24), st.sampled_from([40, 1 << 21]))
def test_only_the_last_row_has_padding(lengths: list[int], block_size: int, window_tokens: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_WINDOW_TOKENS", window_tokens)
        rows = pack(documents(*lengths, 2), block_size)
    assert all(PAD not in ids for ids in rows["input_ids"][:-1])


def test_a_long_document_is_cut_with_an_overlap_of_one_token() -> None:
    rows = pack(documents(10), 4)
    assert rows["input_ids"] == [[2, 3, 4, 5], [5, 6, 7, 8], [8, 9, 10, 11]]
    assert rows["labels"] == [[-100, 3, 4, 5], [-100, 6, 7, 8], [-100, 9, 10, 11]]
    assert rows["position_ids"] == [[0, 1, 2, 3]] * 3


def test_rows_that_best_fit_leaves_unfilled_are_laid_end_to_end() -> None:
    rows = pack(documents(5, 5, 5), 8)
    assert rows["position_ids"] == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 0, 1, 2, 3, 4]]
    first, second = rows["input_ids"]
    assert second[0] == first[-1]
    assert rows["labels"][1][:2] == [IGNORE_INDEX, second[1]]


def test_documents_that_fit_are_not_cut() -> None:
    dataset = documents(3, 5, 6, 2, 8)
    rows = pack(dataset, 8)
    assert sorted(piece for row in rows for piece in pieces(row)) == sorted(dataset["input_ids"])


@pytest.mark.slow
def test_prose_uses_every_position(shared_data: Path) -> None:
    docs = load_corpus("builtin:python-docs")["train"]
    tokenizer = train_tokenizer(docs["text"][:500], 1024, show_progress=False)
    for corpus in (docs, load_corpus(str(shared_data / "corpus" / "gutenberg_en" / "[DF]*.txt"))["train"]):
        batches = list(iterate_rows(tokenize_corpus(corpus, tokenizer), 512, pad_token_id=PAD))
        used = sum(batch.used for batch in batches) / (512 * sum(len(batch.labels) for batch in batches))
        assert used >= 0.99


def test_padding_starts_a_document_of_its_own() -> None:
    row = pack(documents(5), 8)[0]
    assert row["input_ids"] == [2, 3, 4, 5, 6, PAD, PAD, PAD]
    assert row["position_ids"] == [0, 1, 2, 3, 4, 0, 1, 2]
    assert row["labels"] == [IGNORE_INDEX, 3, 4, 5, 6, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX]


def test_rows_are_full() -> None:
    lengths = torch.randint(2, 60, (400,)).tolist()
    rows = pack(documents(*lengths), 64)
    assert sum(lengths) / (len(rows) * 64) > 0.98


def test_more_documents_than_are_packed_at_a_time() -> None:
    # The library packs 10,000 documents together; the second batch must not be cut from the first one's tokens.
    rows = pack(documents(*[3] * 10_050), 96)
    assert sorted(token for ids in rows["input_ids"] for token in ids if token != PAD) == list(range(2, 2 + 30_150))


def test_the_seed_decides() -> None:
    dataset = documents(*torch.randint(2, 30, (60,)).tolist())
    once, again, other = (pack(dataset, 32, seed=seed).to_dict() for seed in (1, 1, 2))
    assert once == again
    assert once != other


def test_without_splitting_the_end_is_dropped() -> None:
    rows = pack(documents(20, 5), 8, split_long=False)
    assert sorted(piece for row in rows for piece in pieces(row)) == [list(range(2, 10)), list(range(22, 27))]


def test_labels_go_with_their_tokens() -> None:
    # Some of these tokens are learned and some are not.
    ids = [[10, 11, 12, 13], [20, 21, 22], [30, 31, 32, 33, 34, 35]]
    labels = [[IGNORE_INDEX, IGNORE_INDEX, 12, 13], [IGNORE_INDEX] * 3, [IGNORE_INDEX, 31, IGNORE_INDEX, 33, 34, 35]]
    rows = pack(Dataset.from_dict({"input_ids": ids, "labels": labels}), 8)
    learned = {label for row in rows for label in row["labels"]} - {IGNORE_INDEX}
    assert learned == {12, 13, 31, 33, 34, 35}
    for row in rows:
        assert all(
            label in (token, IGNORE_INDEX) for token, label in zip(row["input_ids"], row["labels"], strict=True)
        )


def test_rows_without_anything_to_learn_are_dropped() -> None:
    labels = [[IGNORE_INDEX] * 4, [IGNORE_INDEX, 21, 22, 23]]
    rows = pack(Dataset.from_dict({"input_ids": [[10, 11, 12, 13], [20, 21, 22, 23]], "labels": labels}), 4)
    assert rows["input_ids"] == [[20, 21, 22, 23]]


@pytest.mark.parametrize(
    ("dataset", "block_size", "error", "message"),
    [
        (Dataset.from_dict({"input_ids": [[], []]}), 8, DataError, "no tokens to pack"),
        (documents(1, 1, 1), 8, DataError, "block_size"),
        (Dataset.from_dict({"input_ids": [[5, 6, 7]], "labels": [[IGNORE_INDEX] * 3]}), 8, DataError, "block_size"),
        (documents(5), 1, ConfigError, "block_size is 1"),
        (documents(5), 0, ConfigError, "block_size is 0"),
    ],
)
def test_nothing_to_pack(dataset: Dataset, block_size: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pack(dataset, block_size)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_a_document_gives_the_same_logits_packed_as_alone(positions: str, attention: str) -> None:
    config = ChatGPTConfig(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        position_embedding_type=positions,
        initializer_range=0.5,
        attn_implementation=attention,
    )
    model = ChatGPTForCausalLM(config).eval()
    rows = pack(documents(9, 14, 5, 30, 2, 3), 32)
    batch = default_data_collator(list(rows))
    found = [(index, piece) for index, row in enumerate(rows) for piece in pieces(row)]
    with torch.no_grad():
        packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
        for index, piece in found:
            begin = batch["input_ids"][index].tolist().index(piece[0])
            alone = model(input_ids=torch.tensor([piece])).logits[0]
            torch.testing.assert_close(packed[index, begin : begin + len(piece)], alone, rtol=0, atol=2e-5)
    assert len(rows) < len(found), "no row has two documents, so nothing was tested"


def test_stock_trainer_trains_on_the_rows(base_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    dataset = tokenize_corpus(Dataset.from_json(str(corpus_file)), tokenizer)
    assert dataset.column_names == ["input_ids"]
    rows = pack(dataset, 64)
    model = load_model(base_folder)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=15, learning_rate=1e-2, logging_steps=1, save_strategy="no", disable_tqdm=True
    )
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=default_data_collator)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]


def test_a_tokenizer_that_is_too_large_is_refused(base_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    config = ChatGPTConfig(vocab_size=len(tokenizer) - 1, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = ChatGPTForCausalLM(config)
    with pytest.raises(
        TokenizerError, match=rf"has {len(tokenizer)} tokens and .*`vocab_size` is {len(tokenizer) - 1}"
    ):
        check_tokenizer_fits(model, tokenizer)
    with pytest.raises(ValueError, match="this model knows 0 to"):
        model(input_ids=torch.tensor([[len(tokenizer) - 1]]))
    check_tokenizer_fits(load_model(base_folder), tokenizer)

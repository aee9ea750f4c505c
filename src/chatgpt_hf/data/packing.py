"""Packs tokenized documents into full training rows that keep the documents apart.

TRL's best-fit-decreasing packing (Ding et al. 2024, arXiv:2404.10830) decides which documents share a row. TRL leaves
restarting `position_ids` to a collator; this module writes them into the rows, so that stock `Trainer` with
transformers' `default_data_collator` trains on them and no token sees another document, on every attention backend.

Everything works on one flat array of tokens, and a piece is a start and a length in it: documents are cut, sorted into
rows and laid end to end without being copied.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value

from ..errors import ConfigError, DataError
from ..extras import needed_by
from ..tokenization_chatgpt import encode_document_arrays

with needed_by("Training"):
    from trl import pack_dataset

IGNORE_INDEX = -100
# Tokens packed at a time. Memory stays small, and the one row left unfilled moves to the next window.
_WINDOW_TOKENS = 1 << 21
# Rows written at a time.
_CHUNK_ROWS = 1024
ROW_COLUMNS = ("input_ids", "labels", "position_ids")

_Ints = npt.NDArray[Any]


class Tokens(NamedTuple):
    """Documents laid end to end.

    Attributes:
        ids: Token ids, (tokens,).
        labels: The ids, or `IGNORE_INDEX` where a token is not learned, (tokens,); None if all are.
        lengths: Tokens of each document, (documents,).
    """

    ids: _Ints
    labels: _Ints | None
    lengths: _Ints

    @classmethod
    def of(cls, documents: Sequence[_Ints]) -> "Tokens":
        """Makes documents whose tokens are all learned."""
        ids = np.concatenate([np.zeros(0, np.int32), *documents], dtype=np.int32)
        return cls(ids, None, np.array([len(document) for document in documents], np.int64))

    def documents(self) -> list[_Ints]:
        """Returns the token ids of each document."""
        return np.split(self.ids, np.cumsum(self.lengths)[:-1]) if len(self.lengths) else []


class Rows(NamedTuple):
    """Packed rows: arrays (rows, block_size) of int32, and `used`, the number of positions that are not padding."""

    input_ids: _Ints
    labels: _Ints
    position_ids: _Ints
    used: int


class Packing(NamedTuple):
    """The pieces of documents that make up each row.

    Attributes:
        tokens: The documents that the pieces are cut from.
        starts: Start of each piece in `tokens.ids`, (pieces,).
        lengths: Tokens of each piece, (pieces,).
        row: The row of each piece, in ascending order, (pieces,).
        block_size: Tokens in a row.
    """

    tokens: Tokens
    starts: _Ints
    lengths: _Ints
    row: _Ints
    block_size: int

    def num_rows(self) -> int:
        """Returns the number of rows."""
        return int(self.row[-1]) + 1 if len(self.row) else 0

    def assemble(self, rows: _Ints, pad_token_id: int) -> Rows:
        """Builds the given rows, in the given order; leaves out rows with nothing to learn."""
        first, last = np.searchsorted(self.row, rows), np.searchsorted(self.row, rows, "right")
        pieces, _ = _expand(first, last - first)
        row = np.repeat(np.arange(len(rows)), last - first)
        used = np.bincount(row, self.lengths[pieces], minlength=len(rows)).astype(np.int64)
        # A gap becomes a separate piece that starts after the last token, where everything is padding.
        gaps = np.flatnonzero(used < self.block_size)
        order = np.argsort(np.append(row, gaps), kind="stable")
        end = len(self.tokens.ids)
        starts = np.append(self.starts[pieces], np.full(len(gaps), end))[order]
        index, positions = _expand(starts, np.append(self.lengths[pieces], self.block_size - used[gaps])[order])
        padding = index >= end
        index[padding] = 0
        ids = np.where(padding, pad_token_id, self.tokens.ids[index]).astype(np.int32).reshape(-1, self.block_size)
        labels = ids if self.tokens.labels is None else self.tokens.labels[index].reshape(ids.shape)
        unlearned = (padding | (positions == 0)).reshape(ids.shape)
        labels = np.where(unlearned, IGNORE_INDEX, labels).astype(np.int32)
        kept = (labels != IGNORE_INDEX).any(axis=1)
        positions = positions.astype(np.int32).reshape(ids.shape)
        return Rows(ids[kept], labels[kept], positions[kept], int(used[kept].sum()))


def tokenize_corpus(dataset: Dataset, tokenizer: Any, *, num_proc: int | None = None) -> Dataset:
    """Tokenizes the `text` column into one column `input_ids`; each document as in `encode_documents`."""
    return dataset.map(
        _encode_batch,
        batched=True,
        # A document can be a whole book, and the whole batch is in memory at once.
        batch_size=100,
        fn_kwargs={"tokenizer": tokenizer},
        input_columns="text",
        features=Features({"input_ids": List(Value("int32"))}),
        remove_columns=dataset.column_names,
        num_proc=num_proc,
        desc="Tokenizing",
    )


def _encode_batch(texts: Sequence[str], tokenizer: Any) -> dict[str, list[_Ints]]:
    """Tokenizes one batch for `tokenize_corpus`."""
    return {"input_ids": encode_document_arrays(tokenizer, texts)}


def pack_documents(
    dataset: Dataset,
    block_size: int,
    *,
    pad_token_id: int,
    split_long: bool = True,
    seed: int = 0,
) -> Dataset:
    """Packs tokenized documents into rows of `block_size`.

    Args:
        dataset: Documents in a column `input_ids`, and `labels` if not every token is learned.
        block_size: Tokens in a row.
        pad_token_id: Fills the gaps. It is never learned, and attention treats a gap as a separate document.
        split_long: Use every position, so that only the last row has padding: documents longer than a row are cut, and
            so are documents in rows that best fit leaves unfilled. Each piece begins with the last token of the piece
            before it, which is not learned again, so every token except a document's first is predicted exactly once.
            False keeps documents (conversations) whole: it drops the end of long ones and pads the gaps.
        seed: Seed of the document order. The same seed gives the same rows.

    Returns:
        Rows with `input_ids`, `labels` (-100 on the first token of each piece, which nothing predicts, and on padding)
        and `position_ids` (restarting for each piece), each a list of `block_size` integers. Rows with nothing to learn
        are dropped. The rows are in memory; `prepare_rows` writes those of a large corpus to disk.

    Raises:
        DataError: If `dataset` has no tokens, or none to learn within `block_size`.
        ConfigError: If `block_size` is below 2.
    """
    batches = iterate_rows(dataset, block_size, pad_token_id=pad_token_id, split_long=split_long, seed=seed)
    return Dataset(pa.concat_tables([rows_table(rows) for rows in batches]))


def iterate_rows(
    dataset: Dataset, block_size: int, *, pad_token_id: int, split_long: bool = True, seed: int = 0
) -> Iterator[Rows]:
    """Yields the rows of `pack_documents`, about a thousand at a time."""
    if block_size < 2:
        raise ConfigError(f"block_size is {block_size}: a row of fewer than 2 tokens has nothing to predict.")

    found = False
    for packing, _ in iterate_packings(dataset, block_size, split_long=split_long, seed=seed):
        for rows in assembled(packing, pad_token_id):
            found = True
            yield rows
    if not found:
        raise nothing_to_learn(block_size)


def iterate_packings(
    dataset: Dataset,
    block_size: int,
    *,
    split_long: bool = True,
    seed: int = 0,
    first: int = 0,
    rest: Tokens | None = None,
) -> Iterator[tuple[Packing, Tokens]]:
    """Packs window after window of documents, each together with what the window before it left over.

    Args:
        dataset: As for `pack_documents`.
        block_size: As for `pack_documents`.
        split_long: As for `pack_documents`.
        seed: As for `pack_documents`.
        first: Number of windows that were packed before.
        rest: What the last of them left over.

    Yields:
        The rows of a window and what it leaves over; at the end, the row of what the last one left over.
    """
    rest = Tokens.of([]) if rest is None else rest
    for window in _windows(dataset, seed, first):
        packing, rest = pack_tokens(_joined(rest, window), block_size, split_long)
        yield packing, rest
    yield pack_rest(rest, block_size), Tokens.of([])


def assembled(packing: Packing, pad_token_id: int) -> Iterator[Rows]:
    """Yields the rows of a packing that have something to learn, about a thousand at a time."""
    for chunk in np.split(np.arange(packing.num_rows()), range(_CHUNK_ROWS, packing.num_rows(), _CHUNK_ROWS)):
        rows = packing.assemble(chunk, pad_token_id)
        if len(rows.labels):
            yield rows


def nothing_to_learn(block_size: int) -> DataError:
    """The error of documents that give no row with anything to learn."""
    return DataError(
        f"No row of {block_size} tokens has anything to learn: the documents are empty, or the tokens to learn "
        "come after the first block_size tokens. Use a larger block_size."
    )


def rows_table(rows: Rows) -> pa.Table:
    """Converts rows to an Arrow table of lists."""
    count, block_size = rows.input_ids.shape
    offsets = np.arange(count + 1, dtype=np.int32) * block_size
    columns = [pa.ListArray.from_arrays(offsets, getattr(rows, name).reshape(-1)) for name in ROW_COLUMNS]
    return pa.table(columns, names=list(ROW_COLUMNS))


def pack_tokens(tokens: Tokens, block_size: int, split_long: bool = True) -> tuple[Packing, Tokens]:
    """Packs some documents, as `pack_documents` describes.

    Returns:
        The rows; and, with `split_long`, the pieces of the one row that is not full, as documents for the next call or
        for `pack_rest`. Without `split_long`, rows have gaps and nothing is left over.
    """
    starts, lengths = np.cumsum(tokens.lengths) - tokens.lengths, tokens.lengths
    if not split_long:
        starts, lengths, row = _best_fit(starts, np.minimum(lengths, block_size), block_size)
        return Packing(tokens, starts, lengths, row, block_size), Tokens.of([])
    starts, lengths, row = _best_fit(*_cut(starts, lengths, block_size), block_size)
    full = (np.bincount(row, lengths) == block_size)[row]
    again_starts, again_lengths = _lay_end_to_end(starts[~full], lengths[~full], block_size)
    starts, lengths = np.append(starts[full], again_starts), np.append(lengths[full], again_lengths)
    ends = np.cumsum(lengths)
    whole = ends <= lengths.sum() // block_size * block_size
    row = (ends[whole] - 1) // block_size
    index, _ = _expand(starts[~whole], lengths[~whole])
    labels = None if tokens.labels is None else tokens.labels[index]
    rest = Tokens(tokens.ids[index], labels, lengths[~whole])
    return Packing(tokens, starts[whole], lengths[whole], row, block_size), rest


def pack_rest(rest: Tokens, block_size: int) -> Packing:
    """Packs what `pack_tokens` left over into one row; into no row if nothing was left."""
    starts, row = np.cumsum(rest.lengths) - rest.lengths, np.zeros(len(rest.lengths), np.int64)
    return Packing(rest, starts, rest.lengths, row, block_size)


def _windows(dataset: Dataset, seed: int, first: int = 0) -> Iterator[Tokens]:
    """Yields the documents in seeded order, about `_WINDOW_TOKENS` tokens or one longer document at a time.

    Leaves out the first `first` windows.
    """
    columns = [name for name in ("input_ids", "labels") if name in dataset.column_names]
    dataset = dataset.select_columns(columns).with_format("arrow")
    counts = [
        pc.list_value_length(table["input_ids"]).to_numpy()
        for table in dataset.select_columns("input_ids").iter(batch_size=100)
    ]
    lengths = np.concatenate([np.zeros(0, np.int64), *counts])
    filled = np.flatnonzero(lengths)
    if len(filled) == 0:
        raise DataError("The corpus has no tokens to pack: every document is empty.")
    order = filled[np.random.default_rng(seed).permutation(len(filled))]
    window = (np.cumsum(lengths[order]) - lengths[order]) // _WINDOW_TOKENS
    for indices in np.split(order, np.flatnonzero(np.diff(window)) + 1)[first:]:
        # A slice is mapped from disk; rows for a list of indices are copied.
        table = dataset[indices] if len(indices) > 1 else dataset[int(indices[0]) : int(indices[0]) + 1]
        ids, *labels = (
            pc.list_flatten(table[name].combine_chunks()).to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
            for name in columns
        )
        yield Tokens(ids, labels[0] if labels else None, lengths[indices].astype(np.int64))


def _joined(first: Tokens, second: Tokens) -> Tokens:
    if len(first.lengths) == 0:
        return second
    labels = None
    if first.labels is not None and second.labels is not None:
        labels = np.append(first.labels, second.labels)
    return Tokens(np.append(first.ids, second.ids), labels, np.append(first.lengths, second.lengths))


def _expand(starts: _Ints, lengths: _Ints) -> tuple[_Ints, _Ints]:
    """Returns the indices of the pieces' tokens in the flat array, and their positions within the pieces."""
    begins = np.cumsum(lengths) - lengths
    within = np.arange(lengths.sum()) - np.repeat(begins, lengths)
    return np.repeat(starts, lengths) + within, within


def _cut(starts: _Ints, lengths: _Ints, block_size: int) -> tuple[_Ints, _Ints]:
    """Cuts documents longer than a row into pieces that overlap by one token."""
    stride = block_size - 1
    pieces = np.maximum(1, -(-(lengths - 1) // stride))
    _, index = _expand(starts, pieces)
    begins = index * stride
    return np.repeat(starts, pieces) + begins, np.minimum(block_size, np.repeat(lengths, pieces) - begins)


def _best_fit(starts: _Ints, lengths: _Ints, block_size: int) -> tuple[_Ints, _Ints, _Ints]:
    """Sorts pieces into rows; returns their starts, lengths and rows, ordered by row."""
    # Best fit starts with the longest pieces, so each piece as long as a row gets its own row.
    full = lengths == block_size
    count = int(full.sum())
    if count == len(lengths):
        return starts, lengths, np.arange(count)
    index, _ = _expand(starts[~full], lengths[~full])
    offsets = np.append(0, np.cumsum(lengths[~full])).astype(np.int32)
    # TRL can pack lists of anything, so it gets token indices instead of tokens. With an iterable data set it hashes
    # nothing, writes no cache and shows no progress bar.
    pieces = Dataset(pa.table({"index": pa.ListArray.from_arrays(offsets, index)}), fingerprint="pieces")
    packed = pack_dataset(pieces.to_iterable_dataset(), block_size, "bfd", map_kwargs={"batch_size": len(pieces)})
    table = pa.concat_tables(packed.with_format("arrow").iter(batch_size=len(pieces)))
    packed_lengths = pc.list_flatten(table["seq_lengths"]).to_numpy().astype(np.int64)
    packed_starts = pc.list_flatten(table["index"]).to_numpy()[np.cumsum(packed_lengths) - packed_lengths]
    packed_row = np.repeat(np.arange(len(table)), pc.list_value_length(table["seq_lengths"]).to_numpy())
    starts, lengths = np.append(starts[full], packed_starts), np.append(lengths[full], packed_lengths)
    return starts, lengths, np.append(np.arange(count), count + packed_row)


def _lay_end_to_end(starts: _Ints, lengths: _Ints, block_size: int) -> tuple[_Ints, _Ints]:
    """Cuts pieces where rows end; the piece after a cut begins with the last token before it."""
    pieces: list[tuple[int, int]] = []
    space = block_size
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        while length > space:
            pieces.append((start, space))
            start, length, space = start + space - 1, length - space + 1, block_size
        pieces.append((start, length))
        space = space - length or block_size
    laid = np.array(pieces, np.int64).reshape(-1, 2)
    return laid[:, 0], laid[:, 1]

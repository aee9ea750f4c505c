"""Turns a finite corpus into training rows on disk, and reuses them until something relevant changes."""

import hashlib
import json
import logging
import tempfile
import weakref
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from ..cache import (
    ROWS_NAME,
    STATISTICS_NAME,
    building,
    cache_root,
    check_space,
    checksum,
    free_space,
    hold,
    warn_if_large,
    writing,
)
from ..errors import ConfigError, DataError, TokenizerError
from ..parsing import parse_json, read_file
from ..tokenization_chatgpt import document_marks, encode_document_arrays
from .packing import iterate_rows, rows_table

logger = logging.getLogger(__name__)

# Part of the folder's name. Raise it when the same arguments give different rows or the file format changes.
_VERSION = 1
# Disk space per token: three numbers of four bytes in the rows, and one more while they are made.
_ROW_BYTES, _BYTES = 12, 16


@dataclass(frozen=True)
class SourceStatistics:
    """Counts for one source: documents, UTF-8 bytes, and tokens including each document's marks."""

    source: str
    documents: int
    bytes: int
    tokens: int

    @property
    def bytes_per_token(self) -> float:
        """Average number of bytes per token."""
        return self.bytes / self.tokens

    def plus(self, other: "SourceStatistics") -> "SourceStatistics":
        """Returns the sums of both, under this one's name."""
        return SourceStatistics(
            self.source, self.documents + other.documents, self.bytes + other.bytes, self.tokens + other.tokens
        )


@dataclass(frozen=True)
class PreparedRows:
    """Packed rows and facts about them.

    Attributes:
        rows: `input_ids`, `labels` and `position_ids`, as `pack_documents` describes them, memory-mapped from disk.
        statistics: One entry per source, in the order of the documents.
        share_of_positions_used: Share of the rows' positions that are not padding.
        fingerprint: Identifies the documents and their sources, regardless of tokenizer and block size.
    """

    rows: Dataset
    statistics: list[SourceStatistics]
    share_of_positions_used: float
    fingerprint: str


def prepare_rows(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    *,
    seed: int = 0,
    num_proc: int | None = None,
    cache_dir: Path | None = None,
) -> PreparedRows:
    """Tokenizes and packs a corpus, or reuses the rows that an earlier call stored.

    Args:
        documents: Documents with string columns `text` and `source`, as `load_mixture` returns them.
        tokenizer: A fast tokenizer with an eos token.
        block_size: Tokens in a row.
        seed: Seed of the document order.
        num_proc: Number of processes that tokenize; None uses the tokenizer's threads.
        cache_dir: Folder for the rows. Each corpus gets a subfolder named by a hash of all arguments above except
            `num_proc`. None means `$CHATGPT_HF_CACHE`, or `~/.cache/chatgpt_hf`.

    Raises:
        DataError: If the documents contain nothing to learn.
        ConfigError: If `block_size` is below 2.
        TokenizerError: If the tokenizer is not a fast one, or lacks an eos token.
        OutputError: If the disk is full.
    """
    if block_size < 2:
        raise ConfigError(f"block_size is {block_size}: a row of fewer than 2 tokens has nothing to predict.")
    if len(documents) == 0:
        raise DataError("The corpus has no documents to tokenize.")
    fingerprint = _corpus_fingerprint(documents)
    key = hash_of_values([_VERSION, fingerprint, tokenizer_fingerprint(tokenizer), block_size, seed])
    folder = Path(cache_dir or cache_root()) / key
    found = _read(folder, fingerprint)
    if found is None:
        with building(folder):
            # Another process may have prepared them while this one waited.
            found = _read(folder, fingerprint)
            if found is None:
                _build(folder, key, documents, tokenizer, block_size, seed, num_proc)
                found = _read(folder, fingerprint)
                assert found is not None, f"{folder} was written but cannot be read"
                warn_if_large(folder.parent)
                return found
    logger.info("Reusing the tokenized rows in %s.", folder)
    return found


def _build(
    folder: Path,
    key: str,
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    seed: int,
    num_proc: int | None,
) -> None:
    check_room(folder, documents, tokenizer)
    with writing(folder) as temporary, tempfile.TemporaryDirectory(dir=temporary) as scratch:
        tokens = documents.map(
            encode_batch,
            batched=True,
            # A document can be a whole book, and the whole batch is in memory at once.
            batch_size=100,
            fn_kwargs={"tokenizer": tokenizer},
            features=Features({"input_ids": List(Value("int32")), "source": Value("string"), "bytes": Value("int64")}),
            remove_columns=documents.column_names,
            num_proc=num_proc,
            cache_file_name=str(Path(scratch) / "tokens.arrow"),
            new_fingerprint=key,
            desc="Tokenizing",
        )
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        statistics = count_sources(tokens)
        _check_space(folder, sum(source.tokens for source in statistics) * _ROW_BYTES)
        _write(temporary, tokens, statistics, block_size, pad, seed)


def check_room(folder: Path, documents: Dataset, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Raises `OutputError` if the disk has no room for the rows of these documents; without a tokenizer, each byte counts
    as a third of a token."""
    most = _most_tokens(documents)
    if most * _BYTES > free_space(folder):
        estimated = most / 3 if tokenizer is None else _estimated_tokens(documents, tokenizer)
        _check_space(folder, estimated * _BYTES)


def _check_space(folder: Path, needed: float) -> None:
    check_space(folder, needed, "The training rows of this corpus")


def _most_tokens(documents: Dataset) -> int:
    """A limit that byte-level tokenizers do not exceed: each byte is a token."""
    batches = documents.select_columns(["text"]).with_format("arrow").iter(batch_size=1000)
    return sum(pc.sum(pc.binary_length(table["text"])).as_py() for table in batches) + 2 * len(documents)


def _estimated_tokens(documents: Dataset, tokenizer: PreTrainedTokenizerBase) -> float:
    """Extrapolates from the beginnings of a hundred documents."""
    some = documents.select(range(0, len(documents), max(1, len(documents) // 100)))
    texts = [text[:10_000] for text in some["text"]]
    tokens = sum(map(len, encode_document_arrays(tokenizer, texts)))
    return tokens / (sum(len(text.encode()) for text in texts) + 2 * len(texts)) * _most_tokens(documents)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a hash that identifies how a tokenizer encodes documents.

    Raises:
        TokenizerError: If the tokenizer is not a fast one; only those expose their whole state.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TokenizerError("the tokenizer is not from the tokenizers library: load its fast version")
    state = json.loads(backend.to_str())
    # The last call of the tokenizer left these behind; every call sets them again.
    state.pop("padding", None)
    state.pop("truncation", None)
    named = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    # Most tokenizers of other models put no bos before a document; earlier releases did.
    marks = document_marks(tokenizer)
    return hash_of_values(
        [state, *named, tokenizer.pad_token_id, *([] if [*marks.begin, *marks.end] == named else [list(marks)])]
    )


class CorpusFingerprint:
    """A hash of documents and their sources, in their order."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)

    def add(self, texts: Sequence[str], sources: Sequence[str]) -> None:
        """Adds the next documents."""
        for cells in zip(texts, sources, strict=True):
            for cell in map(str.encode, cells):
                self._digest.update(len(cell).to_bytes(8, "big") + cell)

    def hexdigest(self) -> str:
        """Returns the hash of all documents so far, as 32 hexadecimal digits."""
        return self._digest.hexdigest()


def _corpus_fingerprint(documents: Dataset) -> str:
    fingerprint = CorpusFingerprint()
    for batch in documents.select_columns(["text", "source"]).iter(batch_size=100):
        fingerprint.add(batch["text"], batch["source"])
    return fingerprint.hexdigest()


def hash_of_values(value: Any) -> str:
    """Returns a hash of JSON values, as 32 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def encode_batch(batch: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
    """Returns the tokens, sources and sizes in bytes of some documents."""
    return {
        "input_ids": encode_document_arrays(tokenizer, batch["text"]),
        "source": batch["source"],
        "bytes": [len(text.encode()) for text in batch["text"]],
    }


def count_sources(tokens: Dataset) -> list[SourceStatistics]:
    """Counts what `encode_batch` returned, for each source in the order of the documents."""

    def tables() -> Iterator[pa.Table]:
        for table in tokens.with_format("arrow").iter(batch_size=100):
            counts = pc.cast(pc.list_value_length(table["input_ids"]), pa.int64())
            yield pa.table({"source": table["source"], "bytes": table["bytes"], "tokens": counts})

    # A single thread keeps the sources in the order of the documents.
    groups = pa.concat_tables(tables()).group_by("source", use_threads=False)
    sums = groups.aggregate([("bytes", "count"), ("bytes", "sum"), ("tokens", "sum")])
    columns = [sums[name].to_pylist() for name in ("source", "bytes_count", "bytes_sum", "tokens_sum")]
    return [SourceStatistics(*cells) for cells in zip(*columns, strict=True)]


def _write(
    folder: Path, tokens: Dataset, statistics: list[SourceStatistics], block_size: int, pad_token_id: int, seed: int
) -> None:
    used = count = 0
    file = folder / ROWS_NAME
    writer = None
    try:
        for rows in iterate_rows(tokens, block_size, pad_token_id=pad_token_id, seed=seed):
            table = rows_table(rows)
            writer = writer or pa.ipc.new_stream(str(file), table.schema)
            writer.write_table(table)
            used += rows.used
            count += len(table)
    finally:
        if writer is not None:
            writer.close()
    about = {
        "rows": count,
        "bytes": file.stat().st_size,
        "share_of_positions_used": used / (count * block_size),
        "statistics": [asdict(each) for each in statistics],
    }
    about["checksum"] = _checksum(file, about)
    (folder / STATISTICS_NAME).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _read(folder: Path, fingerprint: str) -> PreparedRows | None:
    """Reads the rows in a folder, and keeps them in the cache while they are used; None if they are missing or damaged."""
    file = folder / ROWS_NAME
    held = hold(file)
    if held is None:
        return None
    try:
        about = parse_json(read_file(folder / STATISTICS_NAME))
        if file.stat().st_size == about["bytes"] and about.pop("checksum") == _checksum(file, about):
            rows = Dataset.from_file(str(file))
            statistics = [SourceStatistics(**each) for each in about["statistics"]]
            share = float(about["share_of_positions_used"])
            # Copies of the dataset in other formats share this table.
            weakref.finalize(rows.data.table, held.close)
            return PreparedRows(rows, statistics, share, fingerprint)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    held.close()
    return None


def _checksum(rows: Path, about: dict[str, Any]) -> int:
    # Arrow's format has no checksum, and a changed bit in it is another token.
    return checksum(rows, zlib.crc32(json.dumps(about, sort_keys=True).encode()))

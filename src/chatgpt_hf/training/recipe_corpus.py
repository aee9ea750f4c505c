"""The corpus of a pretraining recipe as rows: prepared before, together with the run's other processes, or streamed."""

import json
import logging
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from ..cache import cache_root
from ..data.files import faults_named, source_files
from ..data.mixture import StreamedCorpus, load_mixture, stream_mixture
from ..data.packing import IGNORE_INDEX
from ..data.prepare import PreparedRows, prepare_rows
from ..data.remote import is_remote
from ..data.shards import CorpusShards, PreparedCorpus
from ..data.sources import parse_sources
from ..data.streaming import ShardedRows, StreamingRows
from ..data.tables import load_hub_splits
from ..errors import ConfigError
from ..tokenization_chatgpt import load_tokenizer, train_tokenizer
from .arguments import CorpusArguments, ModelArguments, PretrainArguments
from .ranges import has_steps

logger = logging.getLogger(__name__)

# The most shards that a stream is cut into by default, unless there are more processes.
_STREAM_SHARDS = 64


class TrainingRows(NamedTuple):
    """The corpus as training rows, with its size, fingerprint and statistics."""

    train: Dataset | StreamingRows | ShardedRows
    test: Dataset
    test_bytes: int
    test_tokens: int
    fingerprint: str
    figures: dict[str, Any]
    statistics: list[dict[str, Any]]


class RecipeCorpus:
    """The corpus of a recipe.

    What `chatgpt-hf prepare` made is used as it is. Otherwise one process prepares it for itself, and several share the
    work; none of them waits for another at a barrier, which has a time limit.

    Args:
        corpus_arguments: Where the text comes from.
        model_arguments: Whether there is a model with a tokenizer.
        arguments: Seed, and the number of processes.
        stream: How the run that is resumed read its stream, from its record.

    Raises:
        ConfigError: If the fields contradict each other.
        DataError: If a source cannot be used.
        TokenizerError: If the tokenizer cannot be used.
    """

    def __init__(
        self,
        corpus_arguments: CorpusArguments,
        model_arguments: ModelArguments,
        arguments: PretrainArguments,
        stream: Mapping[str, int] | None = None,
    ) -> None:
        self.corpus_arguments, self.arguments = corpus_arguments, arguments
        self._stream_before = stream
        self.sources = parse_sources(
            corpus_arguments.corpus, text_column=corpus_arguments.text_column, encoding=corpus_arguments.encoding
        )
        self._common: dict[str, Any] = {
            "test_fraction": corpus_arguments.test_fraction,
            "seed": arguments.seed,
            "skip_broken_files": corpus_arguments.skip_broken_files,
            "eval_corpus": corpus_arguments.eval_corpus,
        }
        # Release 0.1 knew no encodings, and its runs resume: a record without one means UTF-8.
        described = [
            {name: value for name, value in asdict(source).items() if name != "encoding" or value}
            for source in self.sources
        ]
        read_as = {**self._common, **({"encoding": corpus_arguments.encoding} if corpus_arguments.encoding else {})}
        # Stands in for a fingerprint of a stream, which is not read in advance.
        self.specification = json.dumps([described, read_as], sort_keys=True)
        self._common["encoding"] = corpus_arguments.encoding
        _check_stream_shards(corpus_arguments, arguments)
        named = corpus_arguments.tokenizer or model_arguments.model_name_or_path
        if corpus_arguments.streaming:
            if not has_steps(arguments):
                raise ConfigError("--streaming has no end: give --max_steps, or --depth, which sets it.")
            if named is None:
                raise ConfigError(
                    "--streaming reads the text only once, so it cannot train a tokenizer first: give --tokenizer "
                    "(`chatgpt-hf tokenizer train` makes one)."
                )
        self._tokenizer = None if named is None else _given_tokenizer(named)
        # How the stream is read, for the run's record; set by `read`.
        self.stream: dict[str, int] | None = None
        self._documents: DatasetDict | None = None
        self._prepared: PreparedCorpus | None = None
        if not corpus_arguments.streaming:
            self._prepared = self.shards().find()

    def shards(self, *, show_progress: bool = True) -> CorpusShards:
        """Returns the rows as files that several processes make and use."""
        chosen = self.corpus_arguments
        names = [source.source for source in self.sources] + ([chosen.eval_corpus] if chosen.eval_corpus else [])
        return CorpusShards(
            [self.specification, [contents_of(name) for name in dict.fromkeys(names)]],
            self._loaded,
            self._tokenizer or (self._trained, ["trained", chosen.vocab_size]),
            chosen.block_size,
            seed=self.arguments.seed,
            show_progress=show_progress,
        )

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Returns the recipe's tokenizer, or else trains one on the corpus."""
        if self._tokenizer is None:
            if self._prepared is None and self.arguments.world_size > 1:
                self._prepared = self.shards(show_progress=self.arguments.process_index == 0).prepare()
            if self._prepared is None:
                self._tokenizer = self._trained(self._loaded()["train"]["text"])
            else:
                self._tokenizer = self._prepared.tokenizer
        assert self._tokenizer is not None
        return self._tokenizer

    def read(self) -> tuple[TrainingRows, Dataset]:
        """Returns the rows, and the held-out documents with the columns `text` and `source`."""
        if self.corpus_arguments.streaming:
            return self._streamed()
        if self._prepared is None and self.arguments.world_size > 1:
            self._prepared = self.shards(show_progress=self.arguments.process_index == 0).prepare()
        if self._prepared is None:
            documents = self._loaded()
            train, held_out = self._rows(documents["train"]), self._rows(documents["test"])
            return _training_rows(train.rows, held_out, train), documents["test"]
        train, held_out = _as_arrays(self._prepared.train), _as_arrays(self._prepared.held_out)
        return _training_rows(train.rows, held_out, train), self._prepared.held_out_documents

    def _loaded(self) -> DatasetDict:
        if self._documents is None:
            self._documents = load_mixture(self.sources, **self._common)
        return self._documents

    def _trained(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        return train_tokenizer(texts, self.corpus_arguments.vocab_size)

    def _streamed(self) -> tuple[TrainingRows, Dataset]:
        chosen, arguments = self.corpus_arguments, self.arguments
        streamed = stream_mixture(self.sources, eval_documents=chosen.eval_documents, **self._common)
        count = self._stream_shards(streamed)
        rows: StreamingRows | ShardedRows
        if count is None:
            self.stream = {"processes": arguments.world_size, "workers": arguments.dataloader_num_workers}
            rows = StreamingRows(
                streamed.train,
                self.tokenizer(),
                chosen.block_size,
                seed=arguments.seed,
                rank=arguments.process_index,
                world_size=arguments.world_size,
            )
        else:
            self.stream = {"shards": count}
            own = range(arguments.process_index, count, arguments.world_size)
            shards = {
                number: StreamingRows(
                    streamed.shard(number, count),
                    self.tokenizer(),
                    chosen.block_size,
                    seed=arguments.seed,
                    shard=number,
                )
                for number in own
            }
            rows = ShardedRows(shards, count)
        held_out = self._rows(streamed.test)
        return _training_rows(rows, held_out, None)._replace(fingerprint=self.specification), streamed.test

    def _stream_shards(self, streamed: StreamedCorpus) -> int | None:
        """Returns the number of shards; None if all processes read the whole stream, as in earlier releases."""
        processes, before = self.arguments.world_size, self._stream_before
        count = self.corpus_arguments.stream_shards
        if count is None and before is not None:
            count = before.get("shards")
        elif count is None and processes > 1 and self.arguments.dataloader_num_workers <= 1:
            files = streamed.files()
            if files >= processes:
                count = min(files, max(_STREAM_SHARDS, processes)) // processes * processes
            else:
                logger.warning(
                    "Each of the %d processes reads the whole stream, because a source has only %d files: divide it into more.",
                    processes,
                    files,
                )
        if count is not None and count % processes:
            fitting = ", ".join(str(number) for number in range(1, count + 1) if count % number == 0)
            raise ConfigError(
                f"{processes} processes cannot share a stream of {count} shards evenly: start {fitting}, or begin a new run with "
                "other --stream_shards."
            )
        return count

    def _rows(self, documents: Dataset) -> PreparedRows:
        chosen = self.corpus_arguments
        rows = prepare_rows(
            documents,
            self.tokenizer(),
            chosen.block_size,
            seed=self.arguments.seed,
            num_proc=chosen.preprocessing_num_workers,
        )
        return _as_arrays(rows)


def _check_stream_shards(corpus_arguments: CorpusArguments, arguments: PretrainArguments) -> None:
    count = corpus_arguments.stream_shards
    if count is None:
        return
    if not corpus_arguments.streaming:
        raise ConfigError("--stream_shards is for --streaming: add it, or leave --stream_shards out.")
    if count < 1:
        raise ConfigError(f"--stream_shards is {count}: give 1 or more.")
    if arguments.dataloader_num_workers > 1:
        raise ConfigError(
            f"--dataloader_num_workers is {arguments.dataloader_num_workers}: a stream that is cut into shards is read by 0 or 1 "
            "workers of each process."
        )


def _as_arrays(rows: PreparedRows) -> PreparedRows:
    # The collator takes several times as long with lists of Python numbers.
    return replace(rows, rows=rows.rows.with_format("numpy"))


def _training_rows(
    train: Dataset | StreamingRows | ShardedRows, held_out: PreparedRows, prepared: PreparedRows | None
) -> TrainingRows:
    test_bytes = sum(source.bytes for source in held_out.statistics)
    test_tokens = sum(int(np.count_nonzero(batch["labels"] != IGNORE_INDEX)) for batch in held_out.rows.iter(1000))
    if prepared is None:
        return TrainingRows(train, held_out.rows, test_bytes, test_tokens, "", {}, [])
    statistics = [{**asdict(source), "bytes_per_token": source.bytes_per_token} for source in prepared.statistics]
    figures = {
        "train_tokens": sum(source.tokens for source in prepared.statistics),
        "share_of_positions_used": prepared.share_of_positions_used,
    }
    return TrainingRows(train, held_out.rows, test_bytes, test_tokens, prepared.fingerprint, figures, statistics)


def contents_of(source: str) -> list[Any]:
    """Returns names, sizes and times of a source's files, which differ if it has changed. Reads no contents."""
    if source.startswith("builtin:"):
        return [source, platform.python_version()]
    files = source_files(source)
    if files is None:
        # The names of these files hold a hash of the revision.
        splits = load_hub_splits(source)
        cached = [Path(file["filename"]) for split in splits.values() for file in split.cache_files]
        return [source, sorted("/".join(file.parts[-2:]) for file in cached)]
    if is_remote(source):
        # The names of these paths stand for sizes and versions, and the files need not be there yet.
        return [source, [str(file.relative_to(cache_root())) for file in files]]
    stamps = []
    for file in files:
        with faults_named(file):
            status = file.stat()
        stamps.append([str(file), status.st_size, status.st_mtime_ns])
    return [source, stamps]


def _given_tokenizer(name: str) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(name)
    if tokenizer.pad_token_id is None:
        # GPT-2 has none. Padding is masked by position here, so the model still learns eos.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer

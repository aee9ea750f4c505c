"""Pretrains a base model on a corpus."""

import copy
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, IterableDataset
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, default_data_collator

from ..checkpoints import check_tokenizer_fits, load_model
from ..data.corpus_summary import summarize_corpus
from ..data.mixture import load_mixture, stream_mixture
from ..data.packing import IGNORE_INDEX
from ..data.prepare import PreparedRows, prepare_rows, tokenizer_fingerprint
from ..data.shared_stream import SharedStream
from ..data.sources import CorpusSource, parse_sources
from ..data.streaming import StreamingRows
from ..data.summary import RowSummary
from ..errors import ConfigError
from ..evaluation.language_modeling import evaluate_language_modeling
from ..model.configuration_chatgpt import ChatGPTConfig
from ..model.modeling_chatgpt import ChatGPTForCausalLM
from ..terminal import visible
from ..tokenization_chatgpt import load_tokenizer, train_tokenizer
from .arguments import CorpusArguments, ModelArguments, PretrainArguments
from .ranges import has_steps
from .resuming import shards_of, stream_record
from .run import Run, check_block_size
from .run_folder import read_data_record
from .samples import SampleText, sample_text
from .scaling import flops_per_token
from .trainer import PretrainTrainer
from .weights import loading, trained_dtype

logger = logging.getLogger(__name__)

# The columns of a table are those of its first rows.
_SUMMARIZED_ROWS = 1000


def pretrain(
    model_arguments: ModelArguments,
    architecture: Any,
    corpus_arguments: CorpusArguments,
    arguments: PretrainArguments,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Trains a base model and writes a plain model folder with its tokenizer and a report.

    Args:
        architecture: `ArchitectureArguments`.
        callbacks: Additional callbacks for `Trainer`.

    Returns:
        The run's figures, as in its results.json.

    Raises:
        ChatGPTError: If corpus, tokenizer, config or folder cannot be used.
    """
    return PretrainRun(model_arguments, architecture, corpus_arguments, arguments, callbacks).execute()


class PretrainRun(Run):
    """Pretrains a base model on a corpus."""

    command = "pretrain"
    arguments: PretrainArguments

    def __init__(
        self,
        model_arguments: ModelArguments,
        architecture: Any,
        corpus_arguments: CorpusArguments,
        arguments: PretrainArguments,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        super().__init__(arguments, model_arguments, architecture, corpus_arguments)
        self.model_arguments, self.architecture, self.corpus_arguments = (
            model_arguments,
            architecture,
            corpus_arguments,
        )
        self.callbacks = callbacks

    def row_length(self) -> tuple[str, int]:
        return "block_size", self.corpus_arguments.block_size

    def prepare(self) -> None:
        arguments, corpus_arguments = self.arguments, self.corpus_arguments
        self.sources = parse_sources(
            corpus_arguments.corpus, text_column=corpus_arguments.text_column, encoding=corpus_arguments.encoding
        )
        # The first process prepares and caches; the others read the cache.
        with arguments.main_process_first(desc="preparing the corpus"):
            self.corpus = _load_corpus(self.sources, corpus_arguments, self.model_arguments, arguments)
            self.tokenizer = _tokenizer(corpus_arguments, self.model_arguments, self.corpus.train)
            self.model = _model(self.model_arguments, self.architecture, self.tokenizer, corpus_arguments.block_size)
            check_tokenizer_fits(self.model, self.tokenizer)
            check_block_size(corpus_arguments.block_size, self.model)
            shards = self._stream_shards()
            self.rows = _rows(self.corpus, self.tokenizer, corpus_arguments, arguments, shards)
        self.summaries: list[RowSummary] = []
        if arguments.process_index == 0:
            for source in self.sources:
                self.summaries += summarize_corpus(source, limit=_SUMMARIZED_ROWS)
            for summary in self.summaries:
                summary.log()
            _show(self.rows)
        self.data = {
            "corpus": self.rows.fingerprint,
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "block_size": corpus_arguments.block_size,
            "seed": arguments.seed,
            "stream": stream_record(shards, arguments) if corpus_arguments.streaming else None,
            "sources": self.rows.statistics,
        }

    def _stream_shards(self) -> int:
        """The virtual shards of the stream: those of the run that is resumed, unless they are given."""
        chosen, arguments = self.corpus_arguments.stream_shards, self.arguments
        if chosen is not None and chosen < 1:
            raise ConfigError(f"--stream_shards is {chosen}: give a whole number from 1.")
        before = read_data_record(self.checkpoint.parent).get("stream") if self.checkpoint else None
        usual = arguments.world_size * max(1, arguments.dataloader_num_workers)
        shards = chosen or (shards_of(before) if before else usual)
        if self.corpus_arguments.streaming and arguments.process_index == 0 and shards % arguments.world_size:
            logger.warning(
                "%d processes read %d virtual shards of the stream, so several tokenize the same text. Start runs with "
                "--stream_shards set to a multiple of every number of processes.",
                arguments.world_size,
                shards,
            )
        return shards

    def make_trainer(self) -> PretrainTrainer:
        return PretrainTrainer(
            model=self.model,
            args=self.arguments,
            train_dataset=self.rows.train,
            eval_dataset=self.rows.test,
            processing_class=self.tokenizer,
            data_collator=default_data_collator,
            optimizer_cls_and_kwargs=self.arguments.optimizer_cls_and_kwargs,
            callbacks=[SampleText(self.tokenizer, [""]), *self.callbacks],
            eval_bytes_per_token=self.rows.test_bytes / self.rows.test_tokens,
            flops_per_token=flops_per_token(self.model.config, self.corpus_arguments.block_size),
        )

    def measure(self, trainer: Trainer, metrics: dict[str, float]) -> dict[str, Any]:
        held_out = evaluate_language_modeling(
            self.model,
            self.tokenizer,
            self.corpus.test["text"],
            batch_size=self.arguments.per_device_eval_batch_size,
        )
        return {
            "parameters": self.model.num_parameters(),
            **self.rows.figures,
            **{name: value for name, value in metrics.items() if name.startswith("train_") or name == "epoch"},
            **{f"held_out_{name}": value for name, value in held_out.as_dict().items()},
            "sources": self.rows.statistics,
        }

    def report(self, trainer: Trainer, results: dict[str, Any]) -> None:
        arguments = self.arguments
        per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        self.write_report(
            trainer,
            {name: value for name, value in results.items() if name != "sources"},
            title="Pretraining",
            description="a base model that continues text.",
            data=", ".join(source.source for source in self.sources),
            samples=sample_text(self.model, self.tokenizer, [""] * 3, max_new_tokens=100),
            statistics=self.rows.statistics,
            columns=[_columns(summary) for summary in self.summaries],
            tokens_per_step=per_step * self.corpus_arguments.block_size,
            datasets=[source.source for source in self.sources],
            base_model=self.model_arguments.model_name_or_path,
        )


class Corpus(NamedTuple):
    """Documents to train on, as a dataset or a stream, and held-out documents; columns `text` and `source`."""

    train: Dataset | IterableDataset
    test: Dataset
    # The recipe's description of the documents; stands in for a fingerprint of a stream, which is not read in advance.
    specification: str


class TrainingRows(NamedTuple):
    """The corpus as training rows, with its size, fingerprint and statistics."""

    train: Dataset | StreamingRows | SharedStream
    test: Dataset
    test_bytes: int
    test_tokens: int
    fingerprint: str
    figures: dict[str, Any]
    statistics: list[dict[str, Any]]


def _load_corpus(
    sources: list[CorpusSource],
    corpus_arguments: CorpusArguments,
    model_arguments: ModelArguments,
    arguments: PretrainArguments,
) -> Corpus:
    common: dict[str, Any] = {
        "test_fraction": corpus_arguments.test_fraction,
        "seed": arguments.seed,
        "skip_broken_files": corpus_arguments.skip_broken_files,
        "eval_corpus": corpus_arguments.eval_corpus,
    }
    # Release 0.1 knew no encodings, and its runs resume: a record without one means UTF-8.
    described = [
        {name: value for name, value in asdict(source).items() if name != "encoding" or value} for source in sources
    ]
    read_as = {**common, **({"encoding": corpus_arguments.encoding} if corpus_arguments.encoding else {})}
    specification = json.dumps([described, read_as], sort_keys=True)
    common["encoding"] = corpus_arguments.encoding
    if corpus_arguments.streaming:
        if not has_steps(arguments):
            raise ConfigError("--streaming has no end: give --max_steps, or --depth, which sets it.")
        if (corpus_arguments.tokenizer or model_arguments.model_name_or_path) is None:
            raise ConfigError(
                "--streaming reads the text only once, so it cannot train a tokenizer first: give --tokenizer "
                "(`chatgpt-hf tokenizer train` makes one)."
            )
        streamed = stream_mixture(sources, eval_documents=corpus_arguments.eval_documents, **common)
        return Corpus(streamed.train, streamed.test, specification)
    splits = load_mixture(sources, **common)
    return Corpus(splits["train"], splits["test"], specification)


def _rows(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    corpus_arguments: CorpusArguments,
    arguments: PretrainArguments,
    shards: int,
) -> TrainingRows:
    block_size = corpus_arguments.block_size

    def prepare(documents: Dataset) -> PreparedRows:
        workers = corpus_arguments.preprocessing_num_workers
        rows = prepare_rows(documents, tokenizer, block_size, seed=arguments.seed, num_proc=workers)
        # As arrays: the collator takes several times as long with lists of Python numbers.
        return replace(rows, rows=rows.rows.with_format("numpy"))

    test = prepare(corpus.test)
    test_tokens = sum(int(np.count_nonzero(batch["labels"] != IGNORE_INDEX)) for batch in test.rows.iter(1000))
    held_out = (test.rows, sum(source.bytes for source in test.statistics), test_tokens)
    if isinstance(corpus.train, IterableDataset):
        documents = corpus.train
        rows: StreamingRows | SharedStream
        if arguments.world_size == 1 and shards == max(1, arguments.dataloader_num_workers):
            rows = StreamingRows(documents, tokenizer, block_size, seed=arguments.seed)
        else:

            def shard(number: int) -> StreamingRows:
                # Each has its own place in the stream.
                own, seed = copy.deepcopy(documents), arguments.seed
                return StreamingRows(own, tokenizer, block_size, seed=seed, rank=number, world_size=shards, whole=True)

            rows = SharedStream(shard, shards, rank=arguments.process_index, world_size=arguments.world_size)
        return TrainingRows(rows, *held_out, corpus.specification, {}, [])
    train = prepare(corpus.train)
    statistics = [{**asdict(source), "bytes_per_token": source.bytes_per_token} for source in train.statistics]
    figures = {
        "train_tokens": sum(source.tokens for source in train.statistics),
        "share_of_positions_used": train.share_of_positions_used,
    }
    return TrainingRows(train.rows, *held_out, train.fingerprint, figures, statistics)


def _columns(summary: RowSummary) -> dict[str, Any]:
    """Returns a line of the report; its counts would be those of the first rows."""
    return {name: value for name, value in summary.line().items() if name in ("source", "split", "read", "not used")}


def _show(rows: TrainingRows) -> None:
    """Prints the statistics of each source."""
    if not rows.statistics:
        return
    table = Table(*(name.replace("_", " ") for name in rows.statistics[0]), box=None, header_style="bold")
    for source in rows.statistics:
        # A path may contain text that rich would read as markup.
        table.add_row(
            *(f"{value:,.2f}" if isinstance(value, float) else Text(visible(str(value))) for value in source.values())
        )
    console = Console()
    console.print(table)
    console.print(f"{100 * rows.figures['share_of_positions_used']:.1f} % of the rows' positions are used.")


def _tokenizer(
    corpus_arguments: CorpusArguments, model_arguments: ModelArguments, documents: Any
) -> PreTrainedTokenizerBase:
    source = corpus_arguments.tokenizer or model_arguments.model_name_or_path
    if source is not None:
        tokenizer = load_tokenizer(source)
        if tokenizer.pad_token_id is None:
            # GPT-2 has none. Padding is masked by position here, so the model still learns eos.
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer
    return train_tokenizer(documents["text"], corpus_arguments.vocab_size)


def _model(
    model_arguments: ModelArguments,
    architecture: Any,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
) -> PreTrainedModel:
    chosen = {name: value for name, value in vars(architecture).items() if value is not None}
    if model_arguments.model_name_or_path is not None:
        if chosen or model_arguments.depth is not None:
            first = "depth" if model_arguments.depth is not None else next(iter(chosen))
            raise ConfigError(
                f"--{first} shapes a new model, but --model_name_or_path names an existing one: give only one of them."
            )
        return load_model(
            model_arguments.model_name_or_path,
            ChatGPTForCausalLM,
            **loading(model_arguments),
        )
    fixed = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": block_size,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "attn_implementation": model_arguments.attn_implementation,
    }
    try:
        if isinstance(chosen.get("rope_parameters"), str):
            chosen["rope_parameters"] = json.loads(chosen["rope_parameters"])
        if model_arguments.depth is not None:
            config = ChatGPTConfig.from_depth(model_arguments.depth, **{**fixed, **chosen})
        else:
            config = ChatGPTConfig(**{**fixed, **chosen})
    except Exception as error:
        raise ConfigError(f"No model has this shape: {error}") from error
    return ChatGPTForCausalLM(config).to(trained_dtype(model_arguments))

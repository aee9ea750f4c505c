"""From a corpus to a base model."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, IterableDataset
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, default_data_collator

from ..checkpoints import check_tokenizer_fits, load_model
from ..data.mixture import load_mixture, stream_mixture
from ..data.packing import IGNORE_INDEX
from ..data.prepare import PreparedRows, prepare_rows, tokenizer_fingerprint
from ..data.sources import CorpusSource, parse_sources
from ..data.streaming import StreamingRows
from ..errors import ConfigError
from ..evaluation.language_modeling import evaluate_language_modeling
from ..model.configuration_chatgpt import ChatGPTConfig
from ..model.modeling_chatgpt import ChatGPTForCausalLM
from ..reporting.report import Report, training_facts
from ..tokenization_chatgpt import load_tokenizer, train_tokenizer
from .arguments import CorpusArguments, ModelArguments, PretrainArguments
from .run import check_block_size, check_run, push_run, save_results, start_run, train_and_save
from .run_folder import RECIPE_NAME
from .samples import SampleText, sample_text
from .scaling import flops_per_token
from .trainer import PretrainTrainer


def pretrain(
    model_arguments: ModelArguments,
    architecture: Any,
    corpus_arguments: CorpusArguments,
    arguments: PretrainArguments,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Trains a base model and leaves a plain model folder with its tokenizer and a report.

    Args:
        architecture: `ArchitectureArguments`.
        callbacks: More of them for `Trainer`.

    Returns:
        The run's figures, as in its results.json.

    Raises:
        ChatGPTError: On a corpus, tokenizer, config or folder that cannot be used.
    """
    check_run(arguments)
    sources = parse_sources(corpus_arguments.corpus, text_column=corpus_arguments.text_column)
    # What the first process makes and keeps, the others find.
    with arguments.main_process_first(desc="preparing the corpus"):
        corpus = _load_corpus(sources, corpus_arguments, model_arguments, arguments)
        tokenizer = _tokenizer(corpus_arguments, model_arguments, corpus.train)
        model = _model(model_arguments, architecture, tokenizer, corpus_arguments.block_size)
        check_tokenizer_fits(model, tokenizer)
        check_block_size(corpus_arguments.block_size, model)
        rows = _rows(corpus, tokenizer, corpus_arguments, arguments)
    if arguments.process_index == 0:
        _show(rows)
    record = {
        "corpus": rows.fingerprint,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "block_size": corpus_arguments.block_size,
        "seed": arguments.seed,
        "stream": {"processes": arguments.world_size, "workers": arguments.dataloader_num_workers}
        if corpus_arguments.streaming
        else None,
        "sources": rows.statistics,
    }
    folder = start_run(model, arguments, model_arguments, architecture, corpus_arguments, data=record)
    trainer = PretrainTrainer(
        model=model,
        args=arguments,
        train_dataset=rows.train,
        eval_dataset=rows.test,
        processing_class=tokenizer,
        data_collator=default_data_collator,
        optimizer_cls_and_kwargs=arguments.optimizer_cls_and_kwargs,
        callbacks=[SampleText(tokenizer, [""]), *callbacks],
        eval_bytes_per_token=rows.test_bytes / rows.test_tokens,
        flops_per_token=flops_per_token(model.config, corpus_arguments.block_size),
    )
    metrics = train_and_save(trainer, tokenizer, folder)
    held_out = evaluate_language_modeling(
        model, tokenizer, corpus.test["text"], batch_size=arguments.per_device_eval_batch_size
    )
    figures = {
        "parameters": model.num_parameters(),
        **rows.figures,
        **{name: value for name, value in metrics.items() if name.startswith("train_") or name == "epoch"},
        **{f"held_out_{name}": value for name, value in held_out.as_dict().items()},
    }
    results = {**figures, "sources": rows.statistics}
    if trainer.is_world_process_zero():
        per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        tokens_per_step = per_step * corpus_arguments.block_size
        Report(
            title="Pretraining",
            description="a base model that continues text.",
            data=", ".join(source.source for source in sources),
            results=figures,
            log_history=trainer.state.log_history,
            samples=sample_text(model, tokenizer, [""] * 3, max_new_tokens=100),
            statistics=rows.statistics,
            training=training_facts(arguments, trainer.state, tokens_per_step=tokens_per_step),
            command=f"chatgpt-hf pretrain {shlex.quote(str(folder / RECIPE_NAME))} --output_dir NEW",
            tokens_per_step=tokens_per_step,
            datasets=[source.source for source in sources],
            base_model=model_arguments.model_name_or_path,
        ).write(folder)
        save_results(folder, results)
        push_run(arguments, folder)
    return results


class Corpus(NamedTuple):
    """Documents to train on, all at once or as a stream, and documents held out; columns `text` and `source`."""

    train: Dataset | IterableDataset
    test: Dataset
    # What the recipe says of them, for streams, whose documents are not known before they are read.
    specification: str


class Rows(NamedTuple):
    """The same as training rows, with what is known of them."""

    train: Dataset | StreamingRows
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
    specification = json.dumps([[asdict(source) for source in sources], common], sort_keys=True)
    if corpus_arguments.streaming:
        if arguments.max_steps <= 0:
            raise ConfigError("--streaming has no end: give --max_steps, or --depth, which sets it.")
        if (corpus_arguments.tokenizer or model_arguments.model_name_or_path) is None:
            raise ConfigError(
                "--streaming reads the text once, and a tokenizer would have to be trained before: give --tokenizer; "
                "`chatgpt-hf tokenizer train` makes one."
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
) -> Rows:
    block_size = corpus_arguments.block_size

    def prepare(documents: Dataset) -> PreparedRows:
        workers = corpus_arguments.preprocessing_num_workers
        rows = prepare_rows(documents, tokenizer, block_size, seed=arguments.seed, num_proc=workers)
        # Arrays: lists of Python numbers take the collator several times as long.
        return replace(rows, rows=rows.rows.with_format("numpy"))

    test = prepare(corpus.test)
    test_tokens = sum(int(np.count_nonzero(batch["labels"] != IGNORE_INDEX)) for batch in test.rows.iter(1000))
    held_out = (test.rows, sum(source.bytes for source in test.statistics), test_tokens)
    if isinstance(corpus.train, IterableDataset):
        rows = StreamingRows(
            corpus.train,
            tokenizer,
            block_size,
            seed=arguments.seed,
            rank=arguments.process_index,
            world_size=arguments.world_size,
        )
        return Rows(rows, *held_out, corpus.specification, {}, [])
    train = prepare(corpus.train)
    statistics = [{**asdict(source), "bytes_per_token": source.bytes_per_token} for source in train.statistics]
    figures = {
        "train_tokens": sum(source.tokens for source in train.statistics),
        "share_of_positions_used": train.share_of_positions_used,
    }
    return Rows(train.rows, *held_out, train.fingerprint, figures, statistics)


def _show(rows: Rows) -> None:
    """What each source brought, on the screen."""
    if not rows.statistics:
        return
    table = Table(*(name.replace("_", " ") for name in rows.statistics[0]), box=None, header_style="bold")
    for source in rows.statistics:
        # A path may hold what rich takes for its own marks.
        table.add_row(
            *(f"{value:,.2f}" if isinstance(value, float) else escape(str(value)) for value in source.values())
        )
    console = Console()
    console.print(table)
    console.print(f"{100 * rows.figures['share_of_positions_used']:.1f} % of the positions of the rows are used.")


def _tokenizer(
    corpus_arguments: CorpusArguments, model_arguments: ModelArguments, documents: Any
) -> PreTrainedTokenizerBase:
    source = corpus_arguments.tokenizer or model_arguments.model_name_or_path
    if source is not None:
        tokenizer = load_tokenizer(source)
        if tokenizer.pad_token_id is None:
            # GPT-2 has none. Padding is masked by position here, so its eos is learned all the same.
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
                f"--{first} shapes a new model and --model_name_or_path names one that exists: give one of the two."
            )
        return load_model(
            model_arguments.model_name_or_path,
            ChatGPTForCausalLM,
            attn_implementation=model_arguments.attn_implementation,
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
    return ChatGPTForCausalLM(config)

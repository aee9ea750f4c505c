"""Makes the rows of a recipe before its training, by as many processes and machines as are started with it."""

import logging
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

from ..checkpoints import load_config
from ..errors import ChatGPTError, ConfigError
from .arguments import (
    ChatModelArguments,
    ChatSFTArguments,
    ConversationArguments,
    CorpusArguments,
    ModelArguments,
    PretrainArguments,
)
from .recipe_corpus import RecipeCorpus
from .run import check_row_fits
from .sft import SFTRun

logger = logging.getLogger(__name__)


def prepare_corpus(
    model_arguments: ModelArguments,
    architecture: Any,
    corpus_arguments: CorpusArguments,
    arguments: PretrainArguments,
) -> dict[str, Any]:
    """Tokenizes and packs the corpus of a recipe of `pretrain`, which then uses the rows as they are.

    May be called by any number of processes, on machines that share the cache folder; each does what the others have not
    begun, and all return when all is done. `preprocessing_num_workers` of them run on this machine.

    Args:
        architecture: `ArchitectureArguments`; does not matter here.

    Returns:
        Figures for a table: rows, tokens, size and place.

    Raises:
        ConfigError: If the recipe streams its corpus, or its fields contradict each other.
        ChatGPTError: If corpus, tokenizer or cache cannot be used.
    """
    if corpus_arguments.streaming:
        raise ConfigError(
            "--streaming reads and packs the text during training, so there is nothing to prepare: leave it out, here and "
            "in pretrain."
        )
    workers = corpus_arguments.preprocessing_num_workers
    if workers is not None and workers < 1:
        raise ConfigError(f"--preprocessing_num_workers is {workers}: give 1 or more.")
    base = model_arguments.model_name_or_path
    if base is not None and Path(base).is_dir():
        check_row_fits(corpus_arguments.block_size, load_config(base), field="block_size")
    began = time.monotonic()
    corpus = RecipeCorpus(corpus_arguments, model_arguments, arguments)
    shards = corpus.shards()
    there = shards.find()
    others = [] if there else _start_others((workers or 1) - 1, corpus_arguments, model_arguments, arguments)
    try:
        prepared = there or shards.prepare()
    finally:
        for other in others:
            other.join(1)
            other.kill()
    tokens = sum(source.tokens for source in prepared.train.statistics)
    return {
        "train_rows": len(prepared.train.rows),
        "held_out_rows": len(prepared.held_out.rows),
        "train_tokens": tokens,
        "share_of_positions_used": prepared.train.share_of_positions_used,
        "bytes": sum(file.stat().st_size for file in shards.folder.glob("*.arrow")),
        "seconds": 0.0 if there else time.monotonic() - began,
        "folder": str(shards.folder),
    }


def prepare_conversations(
    model_arguments: ChatModelArguments, conversation_arguments: ConversationArguments, arguments: ChatSFTArguments
) -> dict[str, Any]:
    """Reads and tokenizes the conversations of a recipe of `sft`, which then uses the rows as they are.

    Of several processes that are started with the recipe, one does the work, and the others wait for its files.

    Returns:
        As `prepare_corpus`.

    Raises:
        ChatGPTError: If data, tokenizer or cache cannot be used.
    """
    began = time.monotonic()
    base = model_arguments.model_name_or_path
    if base is not None and Path(base).is_dir():
        check_row_fits(conversation_arguments.block_size, load_config(base), field="block_size")
    made, folder, was_there = SFTRun(model_arguments, conversation_arguments, arguments).prepare_only()
    return {
        "train_rows": len(made.rows),
        "held_out_rows": 0 if made.eval_rows is None else len(made.eval_rows),
        "share_of_tokens_learned": made.share_learned,
        "bytes": sum(file.stat().st_size for file in folder.rglob("*.arrow")),
        "seconds": 0.0 if was_there else time.monotonic() - began,
        "folder": str(folder),
    }


def _start_others(number: int, *arguments: Any) -> list[Any]:
    """Starts processes that do the same work."""
    if number:
        # Each tokenizer would use all cores otherwise.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_work, args=arguments, daemon=True) for _ in range(number)]
    for other in others:
        other.start()
    return others


def _work(corpus_arguments: CorpusArguments, model_arguments: ModelArguments, arguments: PretrainArguments) -> None:
    try:
        RecipeCorpus(corpus_arguments, model_arguments, arguments).shards(show_progress=False).prepare()
    except ChatGPTError:
        # The process that started this one takes the work over, and meets the same error.
        return

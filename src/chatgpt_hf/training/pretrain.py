"""Pretrains a base model on a corpus."""

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, default_data_collator

from ..checkpoints import check_tokenizer_fits, load_model
from ..data.corpus_summary import summarize_corpus
from ..data.prepare import tokenizer_fingerprint
from ..data.summary import RowSummary
from ..errors import ConfigError
from ..evaluation.language_modeling import evaluate_language_modeling
from ..model.configuration_chatgpt import ChatGPTConfig
from ..model.modeling_chatgpt import ChatGPTForCausalLM
from ..terminal import visible
from .arguments import CorpusArguments, ModelArguments, PretrainArguments
from .recipe_corpus import RecipeCorpus, TrainingRows
from .run import Run, check_block_size
from .run_folder import read_data_record
from .samples import SampleText, sample_text
from .scaling import flops_per_token
from .trainer import PretrainTrainer
from .weights import loading, trained_dtype

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
        # From the first process: other machines may not have the checkpoint's folder.
        stream = self.world.decide(
            lambda: read_data_record(self.checkpoint.parent).get("stream") if self.checkpoint else None
        )
        corpus = RecipeCorpus(corpus_arguments, self.model_arguments, arguments, stream)
        self.sources = corpus.sources
        self.tokenizer = corpus.tokenizer()
        self.model = _model(self.model_arguments, self.architecture, self.tokenizer, corpus_arguments.block_size)
        check_tokenizer_fits(self.model, self.tokenizer)
        check_block_size(corpus_arguments.block_size, self.model)
        self.rows, self.held_out = corpus.read()
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
            "stream": corpus.stream,
            "sources": self.rows.statistics,
        }

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
        with self.world.shared():
            held_out = evaluate_language_modeling(
                self.model,
                self.tokenizer,
                self.held_out["text"],
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

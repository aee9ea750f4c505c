"""What trainings on conversations share: reading and tokenizing them, and measuring the model's answers."""

import logging
from abc import abstractmethod
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from ..checkpoints import check_named, refuse_adapter
from ..data.conversations import (
    Conversations,
    conversation_key,
    read_conversations,
    share_supervised,
    show_masks,
    tokenize_conversations,
)
from ..data.shapes import PairColumns
from ..data.sources import CorpusSource, parse_sources
from ..data.splits import warn_of_overlap
from ..data.summary import RowSummary
from ..errors import ConfigError, DataError
from ..evaluation.answers import AnswersResult, ends_with_an_answer, evaluate_answers
from ..stored import is_foreign
from ..tokenization_chatgpt import IM_END
from .arguments import ConversationDataArguments
from .chat_run import ChatRun
from .resuming import READ_WITH, rows_fingerprint
from .stored_conversations import ConversationRows

logger = logging.getLogger(__name__)

# Share of the conversations to hold out for a base model that was not made here, if a recipe does not say.
FOREIGN_TEST_FRACTION = 0.05


class ConversationRun(ChatRun):
    """A training on conversations, after which the model answers some of them.

    Attributes:
        sources, summaries: Where the conversations are from, and how each file was read; set by `read`.
        share_learned: Share of the tokens that are learned; set by `prepare_rows`.
        parts: Conversations to answer, by the name of their part in the results; set by `prepare_rows`.
        samples: Some answers for the report; set by `measure_answers`.
    """

    examples = "conversations"
    usual_fraction = FOREIGN_TEST_FRACTION

    data_arguments: ConversationDataArguments
    sources: list[CorpusSource]
    summaries: list[RowSummary]
    share_learned: float
    parts: dict[str, Dataset]
    samples: list[str]

    def check_arguments(self) -> None:
        chosen = self.data_arguments
        self.fraction_is_default = chosen.test_fraction is None
        if self.fraction_is_default:
            refuse_adapter(self.base)
            # Before the Hub is asked whether it is foreign, more than once.
            check_named(self.base, "model_name_or_path")
            chosen.test_fraction = FOREIGN_TEST_FRACTION if is_foreign(self.base) else 0.0
        if chosen.evaluate_answers < 0:
            raise ConfigError(f"--evaluate_answers is {chosen.evaluate_answers}: give 0 to skip the answers, or more.")
        if chosen.evaluate_base and not chosen.evaluate_answers:
            raise ConfigError(
                "--evaluate_base needs answers to compare, and --evaluate_answers is 0: give a number, or leave out "
                "--evaluate_base."
            )

    def row_length(self) -> tuple[str, int]:
        return "block_size", self.data_arguments.block_size

    def read(self) -> DatasetDict:
        """Reads the conversations that the arguments name, as `train` and, if any are held out, `test`."""
        chosen = self.data_arguments
        self.sources = parse_sources(chosen.dataset, encoding=chosen.encoding, field="dataset")
        test_fraction = (chosen.test_fraction or 0.0) if chosen.eval_dataset is None else 0.0
        try:
            splits, self.summaries = self._read(self.sources, test_fraction)
        except DataError:
            if not self.fraction_is_default:
                raise
            # If something else is wrong with the data, this raises the same error again.
            splits, self.summaries = self._read(self.sources, 0.0)
            logger.warning("Too few different conversations to hold any out: all are learned.")
            chosen.test_fraction = 0.0
        if chosen.eval_dataset is not None:
            named = parse_sources(chosen.eval_dataset, encoding=chosen.encoding, field="eval_dataset")
            held_out, summaries = self._read(named, 0.0)
            splits["test"] = held_out.get("test", held_out["train"])
            self.summaries += summaries
        if "test" in splits:
            warn_of_overlap(
                map(conversation_key, splits["train"]["messages"]),
                map(conversation_key, splits["test"]["messages"]),
                unit="conversation",
            )
        self.check_held_out(is_held_out="test" in splits)
        return splits

    def _read(self, sources: list[CorpusSource], test_fraction: float) -> Conversations:
        chosen = self.data_arguments
        return read_conversations(
            sources,
            test_fraction=test_fraction,
            seed=self.arguments.seed,
            skip_invalid=chosen.skip_invalid,
            named=PairColumns(
                chosen.prompt_column, chosen.completion_column, chosen.prompt_template, chosen.completion_template
            ),
        )

    @abstractmethod
    def to_rows(self, tokenized: Dataset) -> Dataset:
        """Makes rows for the trainer of the result of `tokenize_conversations`."""

    def prepare_rows(self, splits: DatasetDict) -> None:
        """Tokenizes the result of `read`, and sets what depends on it. Tokenizer and model are loaded by now."""
        self.use_rows(self.make_rows(splits))

    def make_rows(self, splits: DatasetDict) -> ConversationRows:
        """Tokenizes the result of `read`. The tokenizer is loaded by now."""
        chosen = self.data_arguments
        tokenized = self._tokenized(splits["train"])
        if chosen.show_masks and self.arguments.process_index == 0:
            show_masks(tokenized.select(range(min(chosen.show_masks, len(tokenized)))), self.tokenizer)
        rows = self.to_rows(tokenized)
        # Where a conversation comes from does not matter.
        conversations = splits["train"].select_columns(
            [c for c in splits["train"].column_names if c in ("messages", "tools")]
        )
        return ConversationRows(
            rows=rows,
            eval_rows=self.to_rows(self._tokenized(splits["test"])) if "test" in splits else None,
            parts=_conversations_to_answer(splits, chosen.evaluate_answers, self.arguments.seed),
            share_learned=share_supervised(tokenized),
            rows_fingerprint=rows_fingerprint(rows),
            dataset_fingerprint=rows_fingerprint(conversations),
            test_fraction=chosen.test_fraction,
            summaries=self.summaries,
        )

    def use_rows(self, made: ConversationRows) -> None:
        """Sets what depends on the rows."""
        chosen = self.data_arguments
        self.rows, self.eval_rows, self.parts = made.rows, made.eval_rows, made.parts
        self.share_learned, self.summaries = made.share_learned, made.summaries
        chosen.test_fraction = made.test_fraction
        logger.info("The model learns %.1f %% of the tokens", 100 * self.share_learned)
        self.data = {
            "rows": made.rows_fingerprint,
            **self.record(),
            "block_size": chosen.block_size,
            "long_conversations": chosen.long_conversations,
            "test_fraction": chosen.test_fraction,
            READ_WITH: {"dataset": made.dataset_fingerprint, "skip_invalid": chosen.skip_invalid},
        }

    def _tokenized(self, conversations: Dataset) -> Dataset:
        return tokenize_conversations(
            conversations,
            self.tokenizer,
            max_length=self.data_arguments.block_size,
            long_conversations=self.data_arguments.long_conversations,
            skip_invalid=self.data_arguments.skip_invalid,
        )

    def answers(self, model: PreTrainedModel, desc: str) -> dict[str, AnswersResult]:
        """Lets a model answer the conversations in `parts`."""
        with self.world.shared():
            return {
                title: evaluate_answers(
                    model,
                    self.tokenizer,
                    part["messages"][:],
                    tools=part["tools"][:] if "tools" in part.column_names else None,
                    desc=f"{desc} ({title.replace('_', ' ')})",
                )
                for title, part in self.parts.items()
            }

    def measure_answers(self) -> dict[str, Any]:
        """Lets the trained model answer, keeps samples for the report, and returns the figures."""
        answers = self.answers(self.model, "Answering")
        self.samples = [
            f"({title})\nQ: {sample['question']}\nA: {sample['answer']}\nReference: {sample['reference']}"
            for title, result in answers.items()
            for sample in result.samples
        ]
        figures: dict[str, Any] = answer_figures(answers)
        for result in answers.values():
            figures["rouge_l_measured_with"] = result.rouge_l_signature
        return figures

    def write_conversation_report(self, trainer: Trainer, results: dict[str, Any], **own: Any) -> None:
        """Writes the report; `own` are the fields of `Report` that differ between such trainings."""
        names = [source.source for source in self.sources]
        self.write_report(
            trainer,
            results,
            data=", ".join(names),
            samples=self.samples,
            columns=[summary.line() for summary in self.summaries],
            chat=True,
            datasets=names,
            base_model=self.base,
            **own,
        )


def answer_figures(answers: dict[str, AnswersResult], prefix: str = "") -> dict[str, float]:
    """Returns the figures of a model's answers, named after the part of the data and with a prefix."""
    names = ("exact_match", "rouge_l", "stopped", "well_formed")
    return {f"{prefix}{title}_{name}": getattr(result, name) for title, result in answers.items() for name in names}


def set_generation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, repetition_penalty: float | None = None
) -> None:
    """Makes generation stop at the end of the assistant's turn, and at the end of a document for other text.

    Args:
        repetition_penalty: The model's new default; None keeps the old one.
    """
    if repetition_penalty is not None:
        model.generation_config.repetition_penalty = repetition_penalty
    ends = [tokenizer.convert_tokens_to_ids(IM_END)] if IM_END in tokenizer.get_vocab() else []
    # Models of others may end a turn with other tokens, which their generation_config.json names.
    known = model.generation_config.eos_token_id
    ends += [tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])]
    model.generation_config.eos_token_id = list(dict.fromkeys(end for end in ends if end is not None))
    model.generation_config.pad_token_id = tokenizer.pad_token_id


def _conversations_to_answer(splits: DatasetDict, count: int, seed: int) -> dict[str, Dataset]:
    """Samples up to `count` conversations to answer from each part; keys are the parts' names in the results."""
    parts = {}
    for name, title in (("train", "trained"), ("test", "held_out")):
        if name not in splits or not count:
            continue
        # A conversation that ends with the user is fine for training, but has no last answer to compare with.
        part = splits[name].filter(ends_with_an_answer, input_columns="messages").shuffle(seed=seed)
        if len(part):
            parts[title] = part.select(range(min(count, len(part))))
    return parts

"""Fine-tunes a base model to a chat model with TRL's `SFTTrainer`; the model learns only the assistant's words."""

import logging
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, default_data_collator

from ..chat_templates import read_chat_template
from ..checkpoints import check_tokenizer_fits, extend_vocabulary, load_model, making_adapters, sample_of
from ..data.conversations import (
    Conversations,
    conversation_key,
    read_conversations,
    share_supervised,
    show_masks,
    tokenize_conversations,
)
from ..data.packing import pack_documents
from ..data.shapes import PairColumns
from ..data.sources import CorpusSource, parse_sources
from ..data.splits import warn_of_overlap
from ..errors import ConfigError, DataError, TokenizerError
from ..evaluation.answers import AnswersResult, ends_with_an_answer, evaluate_answers
from ..extras import needed_by
from ..model.modeling_chatgpt import ChatGPTForCausalLM
from ..stored import is_foreign
from ..tokenization_chatgpt import CHAT_TEMPLATE, IM_END, IM_START, PAD, load_tokenizer
from .adapters import lora_config, quantization
from .arguments import ChatModelArguments, ChatSFTArguments, ConversationArguments
from .chat_run import ChatRun
from .resuming import READ_WITH, ResumableTrainer, rows_fingerprint
from .run import check_block_size
from .weights import loading

with needed_by("Training"):
    from trl import SFTTrainer

logger = logging.getLogger(__name__)

# Share of the conversations to hold out for a base model that was not made here, if a recipe does not say.
FOREIGN_TEST_FRACTION = 0.05


class ChatTrainer(ResumableTrainer, SFTTrainer):
    """`SFTTrainer` that continues with the settings of its arguments."""


class ModelLossSFTTrainer(ChatTrainer):
    """`SFTTrainer` with the model's own chunked loss, called as in `Trainer`.

    TRL's fused head also measures entropy, and without a GPU it scores every position in a slower way: about 0.86 s
    per step compared with 0.55 s on two cores, in two quickstart runs at different times. Models without a chunked
    loss keep TRL's.
    """

    compute_loss = Trainer.compute_loss


def add_chat_template(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Adds special tokens and our chat template to a base model's tokenizer, such as GPT-2's, in place.

    Returns:
        The new ids. The model gets embedding rows for them; see `extend_vocabulary`.

    Raises:
        TokenizerError: If the tokenizer has no eos token.
    """
    if tokenizer.eos_token is None:
        raise TokenizerError("The base model's tokenizer has no eos token: set one before chat fine-tuning.")
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token
    before = len(tokenizer)
    new = [token for token in (IM_START, IM_END) if token not in tokenizer.get_vocab()]
    tokenizer.add_special_tokens({"additional_special_tokens": new}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        tokenizer.add_special_tokens({"pad_token": PAD})
    tokenizer.chat_template = CHAT_TEMPLATE
    extend_vocabulary(model, len(tokenizer))
    added = list(range(before, len(tokenizer)))
    logger.info("The tokenizer had no chat template: added ChatML and its %d tokens.", len(added))
    return added


def sft(
    model_arguments: ChatModelArguments,
    conversation_arguments: ConversationArguments,
    arguments: ChatSFTArguments,
) -> dict[str, Any]:
    """Fine-tunes on conversations and writes a plain model folder for `chatgpt-hf chat`.

    Returns:
        The run's figures, as in its results.json: the share of exact answers and ROUGE-L, on samples of the training
        and held-out conversations.

    Raises:
        ChatGPTError: If data, model or folder cannot be used.
    """
    return SFTRun(model_arguments, conversation_arguments, arguments).execute()


class SFTRun(ChatRun):
    """Fine-tunes a base model to a chat model, on conversations."""

    command = "sft"
    base_role = "the base model to fine-tune"
    examples = "conversations"
    usual_fraction = FOREIGN_TEST_FRACTION
    arguments: ChatSFTArguments
    data_arguments: ConversationArguments

    def check_arguments(self) -> None:
        chosen = self.data_arguments
        penalty = chosen.repetition_penalty
        if penalty is not None and not penalty > 0:
            raise ConfigError(f"--repetition_penalty is {penalty}: give a number above 0, where 1 changes nothing.")
        self.fraction_is_default = chosen.test_fraction is None
        if self.fraction_is_default:
            chosen.test_fraction = FOREIGN_TEST_FRACTION if is_foreign(self.base) else 0.0
        if chosen.evaluate_answers < 0:
            raise ConfigError(f"--evaluate_answers is {chosen.evaluate_answers}: give 0 to skip the answers, or more.")
        if chosen.evaluate_base and not chosen.evaluate_answers:
            raise ConfigError(
                "--evaluate_base needs answers to compare, and --evaluate_answers is 0: give a number, or leave out "
                "--evaluate_base."
            )

    def prepare(self) -> None:
        model_arguments, chosen = self.model_arguments, self.data_arguments
        self.sources = parse_sources(chosen.dataset, encoding=chosen.encoding, field="dataset")
        splits = self._load_splits()
        self.tokenizer = tokenizer = load_tokenizer(self.base)
        self.model = load_model(self.base, **loading(model_arguments), **quantization(model_arguments))
        check_tokenizer_fits(self.model, tokenizer)
        self.base_sample = sample_of(self.model)
        if self.arguments.chat_template_path is not None:
            tokenizer.chat_template = read_chat_template(self.arguments.chat_template_path, tokenizer)
        self.added_tokens = add_chat_template(self.model, tokenizer) if tokenizer.chat_template is None else []
        check_block_size(chosen.block_size, self.model)
        if tokenizer.pad_token_id is None:
            # Padding is masked by position here, so the model still learns eos.
            tokenizer.pad_token = tokenizer.eos_token

        tokenized = self._tokenized(splits["train"])
        if chosen.show_masks and self.arguments.process_index == 0:
            show_masks(tokenized.select(range(min(chosen.show_masks, len(tokenized)))), tokenizer)
        self.share_learned = share_supervised(tokenized)
        logger.info("The model learns %.1f %% of the tokens", 100 * self.share_learned)
        self.rows = self._packed(tokenized)
        self.eval_rows = self._packed(self._tokenized(splits["test"])) if "test" in splits else None
        self.parts = _conversations_to_answer(splits, chosen.evaluate_answers, self.arguments.seed)
        # Where a conversation comes from does not matter.
        conversations = splits["train"].select_columns(
            [c for c in splits["train"].column_names if c in ("messages", "tools")]
        )
        self.data = {
            "rows": rows_fingerprint(self.rows),
            **self.record(),
            "block_size": chosen.block_size,
            "long_conversations": chosen.long_conversations,
            "test_fraction": chosen.test_fraction,
            READ_WITH: {"dataset": rows_fingerprint(conversations), "skip_invalid": chosen.skip_invalid},
        }

    def _load_splits(self) -> DatasetDict:
        chosen = self.data_arguments
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

    def _tokenized(self, conversations: Dataset) -> Dataset:
        return tokenize_conversations(
            conversations,
            self.tokenizer,
            max_length=self.data_arguments.block_size,
            long_conversations=self.data_arguments.long_conversations,
            skip_invalid=self.data_arguments.skip_invalid,
        )

    def _packed(self, tokenized: Dataset) -> Dataset:
        return pack_documents(
            tokenized,
            self.data_arguments.block_size,
            pad_token_id=self.tokenizer.pad_token_id,
            split_long=False,
            seed=self.arguments.seed,
        )

    def make_trainer(self) -> ResumableTrainer:
        arguments = self.arguments
        penalty = self.data_arguments.repetition_penalty
        self.base_figures: dict[str, float] = {}
        if self.data_arguments.evaluate_base:
            # Evaluate before training, but with the end marks that the model will learn and the same penalty.
            set_generation(self.model, self.tokenizer, penalty)
            for title, part in self.parts.items():
                answers = _answers(
                    self.model, self.tokenizer, part, f"Answering before training ({title.replace('_', ' ')})"
                )
                self.base_figures |= _figures(f"base_{title}", answers)
        # The rows are ready. TRL's preparation would turn message text that looks like a special token into that
        # token.
        arguments.dataset_kwargs = {"skip_prepare_dataset": True}
        # The tokenizer has it already; TRL would also add tokens to the model.
        arguments.chat_template_path = None
        arguments.remove_unused_columns = False
        self.adapter = lora_config(self.model_arguments, self.model, added=self.added_tokens)
        # TRL's fused head cannot use a head that PEFT has wrapped for new tokens (TRL 1.16).
        own_loss = isinstance(self.model, ChatGPTForCausalLM) or (self.adapter is not None and self.added_tokens)
        trainer_class = ModelLossSFTTrainer if own_loss else ChatTrainer
        with making_adapters():
            trainer = trainer_class(
                model=self.model,
                args=arguments,
                train_dataset=self.rows,
                eval_dataset=self.eval_rows,
                processing_class=self.tokenizer,
                data_collator=default_data_collator,
                optimizer_cls_and_kwargs=arguments.optimizer_cls_and_kwargs,
                peft_config=self.adapter,
            )
        set_generation(self.model, self.tokenizer, penalty)
        return trainer

    def measure(self, trainer: Trainer, metrics: dict[str, float]) -> dict[str, Any]:
        results = {
            **self.training_figures(metrics),
            "share_of_tokens_learned": self.share_learned,
            **self.base_figures,
        }
        if self.eval_rows is not None:
            # Of the final model, which is the best checkpoint's with --load_best_model_at_end.
            results["held_out_loss"] = trainer.evaluate()["eval_loss"]
        self.samples: list[str] = []
        for title, part in self.parts.items():
            answers = _answers(self.model, self.tokenizer, part, f"Answering ({title.replace('_', ' ')})")
            results |= {**_figures(title, answers), "rouge_l_measured_with": answers.rouge_l_signature}
            self.samples += [
                f"({title})\nQ: {s['question']}\nA: {s['answer']}\nReference: {s['reference']}"
                for s in answers.samples
            ]
        return results

    def report(self, trainer: Trainer, results: dict[str, Any]) -> None:
        self.write_report(
            trainer,
            results,
            title="Chat fine-tuning",
            description="a chat model that answers questions.",
            data=", ".join(source.source for source in self.sources),
            samples=self.samples,
            columns=[summary.line() for summary in self.summaries],
            chat=True,
            datasets=[source.source for source in self.sources],
            base_model=self.base,
        )


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


def _answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: Dataset, desc: str) -> AnswersResult:
    tools = part["tools"][:] if "tools" in part.column_names else None
    return evaluate_answers(model, tokenizer, part["messages"][:], tools=tools, desc=desc)


def _figures(title: str, answers: AnswersResult) -> dict[str, float]:
    names = ("exact_match", "rouge_l", "stopped", "well_formed")
    return {f"{title}_{name}": getattr(answers, name) for name in names}

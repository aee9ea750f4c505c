"""Fine-tunes a base model to a chat model with TRL's `SFTTrainer`; the model learns only the assistant's words."""

import copy
import logging
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, default_data_collator

from ..chat_templates import read_chat_template
from ..checkpoints import check_tokenizer_fits, extend_vocabulary, load_model, making_adapters, sample_of
from ..data.packing import pack_documents
from ..data.prepare import tokenizer_fingerprint
from ..data.sources import parse_sources
from ..errors import ConfigError, TokenizerError
from ..extras import needed_by
from ..model.modeling_chatgpt import ChatGPTForCausalLM
from ..tokenization_chatgpt import CHAT_TEMPLATE, IM_END, IM_START, PAD, load_tokenizer
from .adapters import lora_config, quantization
from .arguments import ChatModelArguments, ChatSFTArguments, ConversationArguments

# `set_generation` and the share were here before there was distillation.
from .conversation_run import FOREIGN_TEST_FRACTION as FOREIGN_TEST_FRACTION
from .conversation_run import ConversationRun, answer_figures
from .conversation_run import set_generation as set_generation
from .recipe_corpus import contents_of
from .resuming import ResumableTrainer, template_fingerprint
from .run import check_block_size
from .stored_conversations import ConversationRows, StoredConversations
from .weights import loading

with needed_by("Training"):
    from trl import SFTTrainer

logger = logging.getLogger(__name__)


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
    before = len(tokenizer)
    _add_template_tokens(tokenizer)
    extend_vocabulary(model, len(tokenizer))
    return list(range(before, len(tokenizer)))


def _add_template_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Does what `add_chat_template` does to the tokenizer."""
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
    logger.info("The tokenizer had no chat template: added ChatML and its %d tokens.", len(tokenizer) - before)


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


class SFTRun(ConversationRun):
    """Fine-tunes a base model to a chat model, on conversations."""

    command = "sft"
    base_role = "the base model to fine-tune"
    arguments: ChatSFTArguments
    data_arguments: ConversationArguments

    def check_arguments(self) -> None:
        penalty = self.data_arguments.repetition_penalty
        if penalty is not None and not penalty > 0:
            raise ConfigError(f"--repetition_penalty is {penalty}: give a number above 0, where 1 changes nothing.")
        super().check_arguments()

    def prepare(self) -> None:
        chosen = self.model_arguments
        plain = self._load_tokenizer()
        stored = self._stored()
        found = None if self.data_arguments.show_masks else stored.find()
        shared = found is None and self.arguments.world_size > 1
        splits = self.read() if found is None and not shared else None
        self.model = load_model(self.base, **loading(chosen), **quantization(chosen))
        check_tokenizer_fits(self.model, plain)
        self.base_sample = sample_of(self.model)
        self.added_tokens = list(range(len(plain), len(self.tokenizer)))
        if plain.chat_template is None and self.arguments.chat_template_path is None:
            extend_vocabulary(self.model, len(self.tokenizer))
        check_block_size(self.data_arguments.block_size, self.model)
        if splits is not None:
            self.prepare_rows(splits)
            return
        # Of several processes, one makes the rows, and the others wait for its files.
        self.use_rows(found or stored.prepare(lambda: self.make_rows(self.read())))
        self.check_held_out(is_held_out=self.eval_rows is not None)

    def prepare_only(self) -> tuple[ConversationRows, Path, bool]:
        """Makes the rows for later trainings; returns them, their folder, and whether they were there before.

        Raises:
            ChatGPTError: If data, tokenizer or cache cannot be used.
        """
        if self.model_arguments.model_name_or_path is None:
            raise ConfigError(f"--model_name_or_path is missing: name {self.base_role}.")
        self.check_arguments()
        self._load_tokenizer()
        stored = self._stored()
        found = stored.find()
        made = found or stored.prepare(lambda: self.make_rows(self.read()))
        return made, stored.folder, found is not None

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Sets the tokenizer of the training, and returns the base model's own."""
        self.tokenizer = tokenizer = load_tokenizer(self.base)
        plain = copy.deepcopy(tokenizer)
        if self.arguments.chat_template_path is not None:
            tokenizer.chat_template = read_chat_template(self.arguments.chat_template_path, tokenizer)
        if tokenizer.chat_template is None:
            _add_template_tokens(tokenizer)
        if tokenizer.pad_token_id is None:
            # Padding is masked by position here, so the model still learns eos.
            tokenizer.pad_token = tokenizer.eos_token
        return plain

    def _stored(self) -> StoredConversations:
        """The place of the rows in the cache."""
        chosen = self.data_arguments
        self.sources = parse_sources(chosen.dataset, encoding=chosen.encoding, field="dataset")
        # They do not depend on how the model is measured before the training, and how it generates.
        described = {
            name: value
            for name, value in vars(chosen).items()
            if name not in ("evaluate_base", "repetition_penalty", "show_masks")
        }
        names = [source.source for source in self.sources] + ([chosen.eval_dataset] if chosen.eval_dataset else [])
        template = template_fingerprint(self.tokenizer.chat_template)
        return StoredConversations(
            [
                described,
                [contents_of(name) for name in dict.fromkeys(names)],
                [tokenizer_fingerprint(self.tokenizer), template, self.arguments.seed],
            ]
        )

    def to_rows(self, tokenized: Dataset) -> Dataset:
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
            self.base_figures = answer_figures(self.answers(self.model, "Answering before training"), "base_")
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
        return results | self.measure_answers()

    def report(self, trainer: Trainer, results: dict[str, Any]) -> None:
        self.write_conversation_report(
            trainer, results, title="Chat fine-tuning", description="a chat model that answers questions."
        )

"""Tasks that a causal language model learns by continuing a text."""

from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, default_data_collator

from ..data.packing import pack_documents
from ..model.modeling_chatgpt import ChatGPTForCausalLM
from .base import Task


class CausalTask(Task):
    """A task learned by continuing text: rows are packed without leaks, and only target tokens count in the loss."""

    auto_class = AutoModelForCausalLM
    own_class = ChatGPTForCausalLM
    new_modules = ()
    peft_task_type = "CAUSAL_LM"
    surroundings = "{bos} $A"

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().prepare_tokenizer(tokenizer)
        # Prompts that are continued in one batch have to end at the same position.
        tokenizer.padding_side = "left"

    def pack(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        """Packs rows of `input_ids` and `labels` into full training rows."""
        packed = pack_documents(
            rows,
            self.arguments.max_length,
            pad_token_id=tokenizer.pad_token_id,
            split_long=False,
            seed=self.seed,
        )
        return packed.with_format("numpy")

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        return default_data_collator

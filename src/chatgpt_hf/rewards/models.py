"""The reward of a reward model: its score of a conversation, encoded as in its training."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from ..checkpoints import check_folder, check_tokenizer_fits, context_length, load_config, load_for_inference
from ..data.messages import is_empty
from ..data.preference_tokens import encode_sides
from ..errors import ConfigError
from ..evaluation.padding import pad
from ..tokenization_chatgpt import load_tokenizer
from .base import Reward, Text, answer_text


def model_reward(name_or_path: str, *, batch_size: int = 32) -> Reward:
    """The score of a reward model, as `chatgpt-hf reward` trains it.

    Args:
        name_or_path: Folder or Hub id of a sequence classifier with one output and a chat template.
        batch_size: Conversations that are scored at a time.

    Raises:
        ConfigError: If it has not one output.
        ChatGPTError: If it cannot be loaded.
    """
    check_folder(name_or_path)
    outputs = load_config(name_or_path).num_labels
    if outputs != 1:
        raise ConfigError(
            f"The reward {name_or_path} is a model with {outputs} outputs, and a reward model has one: name a folder that `chatgpt-hf "
            "reward` made."
        )
    model = load_for_inference(name_or_path, AutoModelForSequenceClassification)
    tokenizer = load_tokenizer(name_or_path)
    check_tokenizer_fits(model, tokenizer)
    if tokenizer.chat_template is None:
        raise ConfigError(f"The reward {name_or_path} has no chat template, so it cannot read conversations.")
    limit = context_length(model)

    def encoded(prompt: Text, completion: Text) -> list[int]:
        before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        said = {"role": "assistant", "content": answer_text(completion)}
        if is_empty(said["content"]):
            return []
        sides = encode_sides(before, [[said]], None, tokenizer)
        # What is scored is the end of a conversation.
        return [*sides.prompt_ids, *sides.ids[0]][-limit:]

    @torch.no_grad()
    def function(prompts: Sequence[Text], completions: Sequence[Text], **_: Any) -> list[float | None]:
        rows = list(map(encoded, prompts, completions))
        # An empty answer is none.
        order = sorted((index for index, row in enumerate(rows) if row), key=lambda index: len(rows[index]))
        scores: list[float | None] = [None] * len(rows)
        for begin in range(0, len(order), batch_size):
            part = order[begin : begin + batch_size]
            batch = pad([rows[index] for index in part], side="right", pad_token_id=model.config.pad_token_id)
            found = model(**{name: value.to(model.device) for name, value in batch.items()}).logits.squeeze(-1)
            for index, score in zip(part, found.float().tolist(), strict=True):
                scores[index] = score
        return scores

    return Reward(name_or_path.rstrip("/").rpartition("/")[2], function)

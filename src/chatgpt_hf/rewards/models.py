"""The reward of a reward model: its score of a conversation, encoded as in its training."""

from collections.abc import Sequence
from typing import Any

from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoints import check_folder, check_tokenizer_fits, context_length, load_config, load_for_inference
from ..data.messages import is_empty
from ..data.preference_tokens import encode_sides
from ..errors import ConfigError
from ..evaluation.scoring import classifier_scores
from ..stored import config_of
from ..tokenization_chatgpt import load_tokenizer
from .base import Reward, Text, answer_text


def model_reward(name_or_path: str, *, batch_size: int = 32) -> Reward:
    """The score of a reward model, as `chatgpt-hf reward` trains it.

    Args:
        name_or_path: See `load_reward_model`.
        batch_size: Conversations that are scored at a time.

    Raises:
        ConfigError: If it has not one output.
        ChatGPTError: If it cannot be loaded.
    """
    model, tokenizer = load_reward_model(name_or_path)
    limit = context_length(model)

    def encoded(prompt: Text, completion: Text) -> list[int]:
        before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        said = {"role": "assistant", "content": answer_text(completion)}
        if is_empty(said["content"]):
            return []
        sides = encode_sides(before, [[said]], None, tokenizer)
        # What is scored is the end of a conversation.
        return [*sides.prompt_ids, *sides.ids[0]][-limit:]

    def function(prompts: Sequence[Text], completions: Sequence[Text], **_: Any) -> list[float | None]:
        rows = list(map(encoded, prompts, completions))
        # An empty answer is none.
        there = [row for row in rows if row]
        found = iter(classifier_scores(model, there, batch_size=batch_size, progress=False).tolist())
        return [next(found) if row else None for row in rows]

    return Reward(name_or_path.rstrip("/").rpartition("/")[2], function)


def is_reward_model(name_or_path: str) -> bool:
    """True if a folder or Hub id has a sequence classifier, for which `load_reward_model` is."""
    names = config_of(name_or_path).get("architectures")
    return isinstance(names, list) and any(str(name).endswith("ForSequenceClassification") for name in names)


def load_reward_model(name_or_path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a reward model and its tokenizer.

    Args:
        name_or_path: Folder or Hub id of a sequence classifier with one output and a chat template.

    Raises:
        ConfigError: If it has not one output, or no chat template.
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
    return model, tokenizer

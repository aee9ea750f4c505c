"""Abstention: a model that is not sure enough of its answer says so instead of making something up.

Its confidence is the mean log-probability of its greedy answer. That depends on the conversation only, not on how the
answer that is shown gets chosen: temperature, penalties, bans and seeds change nothing about it.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

from ..checkpoints import context_length
from ..errors import CheckpointError, ConfigError
from ..evaluation.generation import PLAIN_GREEDY, GreedyConfidence
from ..files import check_regular, read_json, write_atomically
from ..hub.connection import hub_errors
from ..stored import ABSTENTION_NAME, safetensors_files, weight_files
from .parameters import generation_config_with
from .streaming import Cancelled

logger = logging.getLogger(__name__)

DEFAULT_TEXT = "I don't know."
# The greedy answer is judged by this many of its tokens, if a calibration does not say otherwise.
JUDGED_TOKENS = 128
FORMAT = 1
# No answer is this unlikely, so a model never abstains.
LEAST = -1000.0
_LONGEST_TEXT = 1000
_MOST_TOKENS = 1 << 20


@dataclass(frozen=True)
class Draft:
    """A greedy answer that nobody has seen yet.

    Attributes:
        ids: Its tokens, with the end mark.
        confidence: Their mean log-probability in nats, at most 0.
    """

    ids: list[int]
    confidence: float


@dataclass(frozen=True)
class Abstention:
    """When a model abstains, and what it says then.

    Attributes:
        threshold: The least confidence of an answer that is given: a mean log-probability per token, in nats.
        text: Said instead of any other answer.
        max_new_tokens: The greedy answer is judged by at most this many tokens.

    Raises:
        ConfigError: If a value cannot be used; the message names it.
    """

    threshold: float
    text: str = DEFAULT_TEXT
    max_new_tokens: int = JUDGED_TOKENS

    def __post_init__(self) -> None:
        # Compared before anything is computed: a file may hold NaN, or a whole number that no float can hold.
        if not (_is_number(self.threshold) and LEAST <= self.threshold <= 0):
            raise ConfigError(
                f"The threshold of abstention is {self.threshold!r:.100}; it must be a number from {LEAST:.0f} to 0: the mean "
                "log-probability per token below which an answer is withheld."
            )
        if not isinstance(self.text, str) or not self.text.strip() or len(self.text) > _LONGEST_TEXT:
            raise ConfigError(
                f"The text of abstention is {self.text!r:.100}; it must be a text of 1 to {_LONGEST_TEXT} characters."
            )
        tokens = self.max_new_tokens
        if not isinstance(tokens, int) or isinstance(tokens, bool) or not 1 <= tokens <= _MOST_TOKENS:
            raise ConfigError(
                f"The max_new_tokens of abstention is {tokens!r:.100}; it must be a whole number from 1 to {_MOST_TOKENS}."
            )

    def withholds(self, draft: Draft) -> bool:
        """True if the model is not sure enough of an answer."""
        return draft.confidence < self.threshold

    def draft(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: list[int],
        generate: Callable[..., torch.Tensor] | None = None,
        cancelled: Event | None = None,
    ) -> Draft | None:
        """Answers greedily; returns None if it was cancelled.

        Args:
            prompt: Token ids, fewer than the model's context.
            generate: Called like `model.generate`, which is the default; `PrefixCache.generate` keeps what it computes
                for the answer that follows.
            cancelled: If another thread sets it, the answer ends within one token.
        """
        cancelled = cancelled or Event()
        config = generation_config_with(
            model.generation_config,
            max_new_tokens=min(self.max_new_tokens, context_length(model) - len(prompt)),
            **PLAIN_GREEDY,
        )
        config.max_length = None
        ids, recorder = torch.tensor([prompt], device=model.device), GreedyConfidence()
        sequence = (generate or model.generate)(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            logits_processor=LogitsProcessorList([recorder]),
            stopping_criteria=StoppingCriteriaList([Cancelled(cancelled)]),
            # For the model's own `stop_strings`.
            tokenizer=tokenizer,
        )
        answer = sequence[0, len(prompt) :].tolist()
        return None if cancelled.is_set() else Draft(answer, recorder.mean(0, len(answer)))


def choose_abstention(
    name_or_path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    abstain: "Abstention | float | bool | None",
    text: str | None = None,
    *,
    quantize: str | None = None,
) -> Abstention | None:
    """Returns the abstention that a user asks for; None for None or False.

    Args:
        name_or_path: Folder or Hub id of the model.
        abstain: True for the folder's own calibration, or a threshold.
        text: What the model says when it abstains, instead of the calibration's text.
        quantize: How the weights are quantized while they are loaded, which a calibration does not know.

    Raises:
        ConfigError: If the folder has no calibration, or one of other weights, or a value cannot be used.
        CheckpointError: If the calibration cannot be read.
    """
    if abstain is None or abstain is False:
        if text is not None:
            raise ConfigError("--abstain_text is what the model says when it abstains: give --abstain too.")
        return None
    if abstain is True:
        abstain = load_abstention(name_or_path, tokenizer)
        if quantize is not None:
            logger.warning(
                "The threshold of %s was calibrated with the weights as they are stored: quantizing them (%s) changes the "
                "confidences a little. `chatgpt-hf quantize` and `calibrate` make a folder whose threshold fits.",
                Path(name_or_path) / ABSTENTION_NAME,
                quantize,
            )
    chosen = abstain if isinstance(abstain, Abstention) else Abstention(abstain)
    return chosen if text is None else replace(chosen, text=text)


def load_abstention(name_or_path: str | Path, tokenizer: PreTrainedTokenizerBase) -> Abstention:
    """Reads the calibration in a model's folder.

    Args:
        name_or_path: Folder or Hub id.
        tokenizer: Its tokenizer: another chat template makes other prompts.

    Raises:
        ConfigError: If there is none, or it was made for other weights or another chat template.
        CheckpointError: If it cannot be read.
    """
    folder = _folder_of(name_or_path)
    file = folder / ABSTENTION_NAME
    again = f"run `chatgpt-hf calibrate {name_or_path} --known CHATS`, or give a threshold, such as --abstain -0.5"
    if not file.exists():
        raise ConfigError(f"{name_or_path} has no calibration ({ABSTENTION_NAME} is missing): {again}.")
    content = read_json(file)
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{file}: format is {content.get('format')!r:.100}, and this release reads {FORMAT}: {again}."
        )
    try:
        found = Abstention(*(content.get(name) for name in ("threshold", "text", "max_new_tokens")))  # type: ignore[arg-type]
    except ConfigError as error:
        raise CheckpointError(f"{file} cannot be used. {error} To write it again, {again}.") from error
    now = {"weights": weights_fingerprint(folder), "chat_template": template_fingerprint(tokenizer)}
    for name, own in now.items():
        if content.get(name) != own:
            what = "other weights" if name == "weights" else "another chat template"
            raise ConfigError(f"{file} was made with {what} than the folder has now: {again}.")
    return found


def save_abstention(
    abstention: Abstention, folder: Path, tokenizer: PreTrainedTokenizerBase, calibration: dict[str, Any]
) -> Path:
    """Writes a model's calibration into its folder, completely or not at all.

    Args:
        calibration: How it was made and what it costs, in JSON's types; for people only.
    """
    content = {
        "format": FORMAT,
        "threshold": abstention.threshold,
        "text": abstention.text,
        "max_new_tokens": abstention.max_new_tokens,
        "weights": weights_fingerprint(folder),
        "chat_template": template_fingerprint(tokenizer),
        "calibration": calibration,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    file = folder / ABSTENTION_NAME
    write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return file


def weights_fingerprint(folder: Path) -> str:
    """A hash of a folder's weights, or of an adapter's own (its base is checked when it is loaded).

    Raises:
        CheckpointError: If there are none, or they cannot be read.
    """
    digest = hashlib.sha256()
    # In the order of the names, which is that of the shards.
    files = sorted(weight_files(folder)) or safetensors_files(folder)
    if not files:
        raise CheckpointError(f"{folder} has no weights in safetensors that a calibration could belong to.")
    for file in files:
        try:
            check_regular(file)
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()


def template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of a tokenizer's chat template."""
    return hashlib.sha256(json.dumps(tokenizer.chat_template, sort_keys=True).encode()).hexdigest()


def _folder_of(name_or_path: str | Path) -> Path:
    """The folder with a model's files: for a Hub id, the one in the cache, where the calibration is brought to."""
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    with hub_errors(str(name_or_path)), suppress(EntryNotFoundError, LocalEntryNotFoundError):
        return Path(hf_hub_download(str(name_or_path), ABSTENTION_NAME)).parent
    return folder


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

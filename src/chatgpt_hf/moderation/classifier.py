"""A text-classification model as a moderator."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from transformers import AutoModelForSequenceClassification, pipeline

from ..checkpoints import context_length, load_model
from ..errors import CheckpointError, ConfigError, ContentFiltered
from ..tokenization_chatgpt import load_tokenizer

logger = logging.getLogger("chatgpt_hf.moderation")

# Maximum number of characters to hold back if no sentence ends before.
LONGEST_SENTENCE = 200
_SENTENCE_END = re.compile(r"[.!?。！？\n]")


class Classifier:
    """A moderator that uses a text-classification model.

    A message that is too long for the model is read in windows, each of which starts in the middle of the one before;
    the message is blocked if one window is. In an answer, each sentence (or 200 characters of a longer one) is shown
    after the model has read the answer up to its end, or as much of this as fits; a sentence that does not fit is read
    in windows.

    Args:
        model_name_or_path: Folder or Hub id.
        labels: The model's labels that are blocked.
        threshold: The score from which a label is blocked.
        log_text: Also log the text.

    Raises:
        ConfigError: If there are no labels, the model lacks one, or the threshold is not a probability above 0.
        CheckpointError: If there is no such model, or it is not for text classification.
    """

    def __init__(
        self,
        model_name_or_path: str | Path,
        labels: Sequence[str] | None = None,
        threshold: float = 0.5,
        log_text: bool = False,
    ) -> None:
        if not 0 < threshold <= 1:
            raise ConfigError(f"The moderation threshold is {threshold}; it must be above 0 and at most 1.")
        self.name = str(model_name_or_path)
        try:
            model = load_model(model_name_or_path, AutoModelForSequenceClassification)
        except CheckpointError as error:
            raise CheckpointError(
                f"Moderation needs a word list (.txt) or a text-classification model with a trained head. {error}"
            ) from error
        known = list(model.config.id2label.values())
        if not labels or (unknown := [label for label in labels if label not in known]):
            wrong = f"has no label {unknown[0]!r}" if labels else "needs the labels to block"
            raise ConfigError(
                f"The moderation model {self.name} {wrong}. Its labels are: {', '.join(map(repr, known))}."
            )
        self._labels = set(labels)
        self._threshold = threshold
        self._log_text = log_text
        self._tokenizer = load_tokenizer(str(model_name_or_path))
        # Tokenizers without a limit have a very large number here.
        limit = min(self._tokenizer.model_max_length, context_length(model))
        self._room = max(1, limit - self._tokenizer.num_special_tokens_to_add())
        self._pipeline = pipeline("text-classification", model=model.eval(), tokenizer=self._tokenizer)
        # A server calls this from several threads, but a fast tokenizer cannot truncate in two threads at once.
        self._lock = Lock()
        self._options = {"top_k": None, "truncation": True, "max_length": limit}

    def check(self, text: str) -> None:
        """Raises `ContentFiltered` if the model assigns one of the blocked labels to the text."""
        if self.blocks(text, "input"):
            raise ContentFiltered("Moderation blocked the message: a model assigned it a blocked label.")

    def filter(self) -> "_SentenceFilter":
        """Returns a filter that shows a sentence after the model has read it."""
        return _SentenceFilter(self)

    def blocks(self, text: str, direction: str) -> bool:
        """True if the model assigns a blocked label to one of the text's windows."""
        if not text.strip():
            return False
        starts = self._starts(text)
        step = max(1, self._room // 2)
        for index in range(0, max(1, len(starts) - self._room + step), step):
            start = starts[index] if index else 0
            end = starts[index + self._room] if index + self._room < len(starts) else len(text)
            if self._blocks_window(text[start:end], direction):
                return True
        return False

    def _blocks_window(self, text: str, direction: str) -> bool:
        with self._lock:
            scores = {found["label"]: found["score"] for found in self._pipeline([text], **self._options)[0]}
        label = max(self._labels, key=lambda label: scores[label])
        if scores[label] < self._threshold:
            return False
        said = f": {text!r}" if self._log_text else ""
        logger.warning(
            "blocked %s: model %s, label %s, score %.3f%s", direction, self.name, label, scores[label], said
        )
        return True

    def last_window(self, text: str) -> str:
        """The end of a text, as long as the model can read."""
        starts = self._starts(text)
        return text[starts[-self._room] :] if len(starts) > self._room else text

    def _starts(self, text: str) -> list[int]:
        """The start positions of a text's tokens."""
        with self._lock:
            encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [start for start, _ in encoded["offset_mapping"]]


class _SentenceFilter:
    """Holds an answer back until a sentence is complete and the classifier lets it pass."""

    def __init__(self, classifier: Classifier) -> None:
        self.finish_reason: str | None = None
        self._classifier = classifier
        self._shown = ""
        self._held = ""

    def feed(self, piece: str) -> str:
        self._held += piece
        shown = ""
        while self.finish_reason is None:
            match = _SENTENCE_END.search(self._held, 0, LONGEST_SENTENCE)
            if match is None and len(self._held) < LONGEST_SENTENCE:
                break
            shown += self._pass(match.end() if match else LONGEST_SENTENCE)
        return shown

    def finish(self) -> str:
        return self._pass(len(self._held)) if self.finish_reason is None else ""

    def _pass(self, length: int) -> str:
        sentence, self._held = self._held[:length], self._held[length:]
        if not sentence.strip(" \n.!?。！？"):
            # Only punctuation or space, such as the rest of "..." or a blank line: nothing to classify.
            self._shown += sentence
            return sentence
        self._shown = self._classifier.last_window(self._shown + sentence)
        if self._classifier.blocks(max(self._shown, sentence, key=len), "output"):
            self.finish_reason = "content_filter"
            self._held = ""
            return ""
        return sentence

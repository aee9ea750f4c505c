"""Refuses models that were saved with the head of another task: the head that generates would not be theirs."""

from pathlib import Path

from transformers import PreTrainedModel

from ..errors import ConversionError

# Ends of the names of classes that predict the next token. Others, such as `GPT2LMHeadModel`, have no "For" in their name.
_GENERATES = ("CausalLM", "ConditionalGeneration")


def check_language_model(model: PreTrainedModel, source: str | Path, what: str) -> None:
    """Raises unless a model was saved as a language model.

    `AutoModelForCausalLM` also loads a fine-tuned classifier: it drops the classifier's head, and ties a new one to the
    embedding.

    Args:
        model: The model, as loaded; its config has the class that saved it.
        source: Folder or Hub id, for the message.
        what: What only language models can do, as `be quantized`.

    Raises:
        ConversionError: If the class in config.json has another head; names it.
    """
    others = [name for name in model.config.architectures or () if "For" in name and not name.endswith(_GENERATES)]
    if others:
        raise ConversionError(f"{source} is a {others[0]}: only language models can {what}.")

"""The model and its pipelines. Importing this package registers the model with transformers.

The other files of this folder travel to the Hub with every saved model; this one stays here.
"""

import sys

import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .configuration_chatgpt import ChatGPTConfig
from .modeling_chatgpt import (
    ChatGPTForCausalLM,
    ChatGPTForQuestionAnswering,
    ChatGPTForSequenceClassification,
    ChatGPTForTokenClassification,
    ChatGPTModel,
)

AUTO_CLASSES = {
    AutoModel: ChatGPTModel,
    AutoModelForCausalLM: ChatGPTForCausalLM,
    AutoModelForSequenceClassification: ChatGPTForSequenceClassification,
    AutoModelForTokenClassification: ChatGPTForTokenClassification,
    AutoModelForQuestionAnswering: ChatGPTForQuestionAnswering,
}


def register() -> None:
    """Registers the config and the models; calling it again changes nothing."""
    AutoConfig.register(ChatGPTConfig.model_type, ChatGPTConfig, exist_ok=True)
    for auto_class, model_class in AUTO_CLASSES.items():
        auto_class.register(ChatGPTConfig, model_class, exist_ok=True)
    # `transformers serve` and several TRL trainers look an architecture up as `getattr(transformers, name)`. transformers
    # replaces its module while it is imported, and both modules are in use then.
    for module in (transformers, sys.modules["transformers"]):
        for public in (ChatGPTConfig, *AUTO_CLASSES.values()):
            setattr(module, public.__name__, public)


register()

# Foreign checkpoints are read by `from_pretrained` too. Last, because the families import the model.
from ..conversion import families as families  # noqa: E402

"""Makes transformers know the model: Auto classes, module attributes, and checkpoints of other families."""

import sys

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.conversion_mapping import register_checkpoint_conversion_mapping

from . import registration_lazy
from .configuration_chatgpt import ChatGPTConfig
from .conversion.families import MODEL_FAMILIES
from .conversion.gpt2 import GPT2_WEIGHT_MAPPING
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
NAME_TABLES = {
    model_class: registration_lazy.NAME_TABLES[model_class.__name__] for model_class in AUTO_CLASSES.values()
}
CLASSES: dict[str, type] = {public.__name__: public for public in (ChatGPTConfig, *AUTO_CLASSES.values())}


def register() -> None:
    """Registers everything; calling it again changes nothing."""
    AutoConfig.register(ChatGPTConfig.model_type, ChatGPTConfig, exist_ok=True)
    for auto_class, model_class in AUTO_CLASSES.items():
        auto_class.register(ChatGPTConfig, model_class, exist_ok=True)
        NAME_TABLES[model_class][ChatGPTConfig.model_type] = model_class.__name__
    # `transformers serve` and several TRL trainers look an architecture up as `getattr(transformers, name)`.
    for name, public in CLASSES.items():
        for module in (*registration_lazy.packages, sys.modules["transformers"]):
            setattr(module, name, public)
    for family in MODEL_FAMILIES.values():
        ChatGPTConfig.foreign_config_readers[family.name] = family.reader
    register_checkpoint_conversion_mapping(ChatGPTConfig.model_type, GPT2_WEIGHT_MAPPING, overwrite=True)

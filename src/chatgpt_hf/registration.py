"""Registers the model with transformers: Auto classes, module attributes, and checkpoints of other families."""

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
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.models.auto import modeling_auto

from .conversion.families import MODEL_FAMILIES
from .conversion.families.gpt2 import GPT2_WEIGHT_MAPPING
from .model.configuration_chatgpt import ChatGPTConfig
from .model.modeling_chatgpt import (
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
# `Auto*.register` does not update these tables of names. `Trainer` uses them to decide whether label smoothing must
# shift the labels, and pipelines to decide whether to warn of an unknown model.
NAME_TABLES = {
    ChatGPTModel: modeling_auto.MODEL_MAPPING_NAMES,
    ChatGPTForCausalLM: modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    ChatGPTForSequenceClassification: modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    ChatGPTForTokenClassification: modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    ChatGPTForQuestionAnswering: modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
}


def register() -> None:
    """Registers everything; calling it again changes nothing."""
    # While parts of transformers are imported, it replaces its entry in `sys.modules`; then both modules are in use.
    modules = (transformers, sys.modules["transformers"])
    AutoConfig.register(ChatGPTConfig.model_type, ChatGPTConfig, exist_ok=True)
    for auto_class, model_class in AUTO_CLASSES.items():
        auto_class.register(ChatGPTConfig, model_class, exist_ok=True)
        NAME_TABLES[model_class][ChatGPTConfig.model_type] = model_class.__name__
    # `transformers serve` and several TRL trainers look an architecture up as `getattr(transformers, name)`.
    for public in (ChatGPTConfig, *AUTO_CLASSES.values()):
        for module in modules:
            setattr(module, public.__name__, public)
    for family in MODEL_FAMILIES.values():
        ChatGPTConfig.foreign_config_readers[family.name] = family.reader
    register_checkpoint_conversion_mapping(ChatGPTConfig.model_type, GPT2_WEIGHT_MAPPING, overwrite=True)

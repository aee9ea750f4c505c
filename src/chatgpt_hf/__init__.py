"""A GPT that is a first-class Hugging Face citizen, and the road from raw text to a chat model made with it.

Importing the package makes the model known to transformers' Auto classes. Everything else is loaded when first used.
"""

from importlib import import_module
from typing import Any

from ._moved import keep_old_names
from .registration import announce

__version__ = "0.1.0"

_EXPORTS = {
    "ChatGPTConfig": "model.configuration_chatgpt",
    "ChatGPTPreTrainedModel": "model.modeling_chatgpt",
    "ChatGPTModel": "model.modeling_chatgpt",
    "ChatGPTForCausalLM": "model.modeling_chatgpt",
    "ChatGPTForSequenceClassification": "model.modeling_chatgpt",
    "ChatGPTForTokenClassification": "model.modeling_chatgpt",
    "ChatGPTForQuestionAnswering": "model.modeling_chatgpt",
    "ChatGPTError": "errors",
    "ChatSession": "inference.session",
    "GrowingCache": "inference.cache",
    "PrefixCache": "inference.cache",
    "compile_config": "inference.compiling",
    "load_for_generation": "inference.loading",
    "quantize_model": "inference.quantization",
    "use_cpu_kernels": "inference.cpu.packed_linear",
    "load_builtin": "data.builtin",
    "load_corpus": "data.corpus",
    "load_model": "checkpoints",
    "load_tokenizer": "tokenization_chatgpt",
    "train_tokenizer": "tokenization_chatgpt",
    "pack_documents": "data.packing",
    "convert_checkpoint": "conversion.convert",
    "pretrain": "training.pretrain",
    "sft": "training.sft",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)


announce()
keep_old_names()

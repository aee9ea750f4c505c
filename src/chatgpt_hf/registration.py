"""Tells transformers that the model exists, without importing it.

Importing the model takes as long as torch and transformers' Auto classes together. So `import chatgpt_hf` only adds its names to
the tables in which transformers looks models up, and whatever needs a class imports `chatgpt_hf.model`, which registers it:

- `AutoConfig`, and through it every Auto class, imports `transformers.models.<model_type>` to find a config's class;
- `transformers serve` and TRL call `getattr(transformers, "ChatGPTForCausalLM")`;
- any import of a module of `chatgpt_hf.model`.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import transformers
from transformers.models.auto import configuration_auto, modeling_auto

MODEL_TYPE = "chatgpt"
CONFIG_NAME = "ChatGPTConfig"
# `Auto*.register` does not fill these tables. `Trainer` reads in them whether label smoothing has to shift the labels, and
# pipelines whether to complain about an unknown model.
NAME_TABLES: dict[str, dict[str, Any]] = {
    "ChatGPTModel": modeling_auto.MODEL_MAPPING_NAMES,
    "ChatGPTForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "ChatGPTForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "ChatGPTForTokenClassification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "ChatGPTForQuestionAnswering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
}


def announce() -> None:
    """Adds the model's names to transformers; calling it again changes nothing."""
    if MODEL_TYPE in configuration_auto.CONFIG_MAPPING_NAMES:
        return
    configuration_auto.CONFIG_MAPPING_NAMES[MODEL_TYPE] = CONFIG_NAME
    for name, table in NAME_TABLES.items():
        table[MODEL_TYPE] = name
    # Where transformers looks for the classes of this model type.
    name = f"transformers.models.{MODEL_TYPE}"
    sys.modules[name] = _with_our_names(ModuleType(name))
    # transformers replaces its module while it is imported, and both modules are in use then.
    for module in {id(module): module for module in (transformers, sys.modules["transformers"])}.values():
        _with_our_names(module)


def register() -> None:
    """Registers the model at once; calling it again changes nothing."""
    from . import model

    model.register()


def _with_our_names(module: ModuleType) -> ModuleType:
    """Gives a module a `__getattr__` (PEP 562) that finds our public classes; other names are looked up as before."""
    before: Callable[[str], Any] | None = vars(module).get("__getattr__")

    def find(name: str) -> Any:
        if name == CONFIG_NAME or name in NAME_TABLES:
            from . import model

            return getattr(model, name)
        if before is not None:
            return before(name)
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

    module.__getattr__ = find  # type: ignore[method-assign]
    return module

"""Tells transformers that the model exists, without importing it.

Importing the model takes as long as torch and transformers' Auto classes together. So `import chatgpt_hf` only adds its names to
the tables in which transformers looks models up, and whatever needs a class imports `chatgpt_hf.model`, which registers it:

- `AutoConfig`, and through it every Auto class, imports `transformers.models.<model_type>` to find a config's class;
- `transformers serve` and TRL call `getattr(transformers, "ChatGPTForCausalLM")`;
- any import of a module of `chatgpt_hf.model`.

PEFT looks up in tables which layers of a model type get adapters. Importing PEFT takes a second, so they are filled
in when somebody else imports it.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import transformers
from transformers.models.auto import configuration_auto, modeling_auto

from .extras import needed_by

MODEL_TYPE = "chatgpt"
PEFT = "peft"
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
    if sys.modules.get(PEFT) is not None:
        _fill_peft_tables()
    else:
        sys.meta_path.insert(0, _WhenPeftIsImported())


def _fill_peft_tables() -> None:
    """Gives adapters the layers that they have in Llama, whose parameter names the model shares."""
    with needed_by("Adapters"):
        from peft import utils

    for name in utils.__all__:
        table = getattr(utils, name)
        if name.endswith("_MODULES_MAPPING") and isinstance(table, dict) and "llama" in table:
            table.setdefault(MODEL_TYPE, table["llama"])


class _WhenPeftIsImported(MetaPathFinder):
    """Fills PEFT's tables after its first import; finds no module itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != PEFT:
            return None
        # Not every search is an import: libraries also ask in this way whether PEFT is installed.
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in others if found is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenFillTables(spec.loader, self)
        return spec


class _ThenFillTables(Loader):
    """A loader that fills PEFT's tables after the module has run."""

    def __init__(self, loader: Loader, finder: MetaPathFinder) -> None:
        self.loader = loader
        self.finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # Who reads the module's source or resources later asks its own loader.
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        _fill_peft_tables()
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)


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

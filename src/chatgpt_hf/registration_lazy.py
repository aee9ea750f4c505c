"""Tells transformers that the model exists, and registers it when it is first needed.

Registering imports the model, and with it the half of transformers that models are made of: twice what importing torch and
transformers' Auto classes takes. So `import chatgpt_hf` leaves only names, in the tables where transformers looks models up by
name, and everything that leads to the classes themselves registers them:

- `AutoConfig` and, through it, all other Auto classes import `transformers.models.<model_type>` for a config's class;
- `getattr(transformers, "ChatGPTForCausalLM")`, as `transformers serve` and TRL do, and `from transformers import ...`;
- any import of a module of this package that imports the config, without which there is neither a config nor a model of ours.
"""

import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from transformers.models.auto import configuration_auto, modeling_auto

MODEL_TYPE = "chatgpt"
CONFIG_NAME = "ChatGPTConfig"
CONFIG_MODULE = f"{__package__}.configuration_chatgpt"
# `Auto*.register` leaves these tables alone. `Trainer` reads in them whether label smoothing has to shift the labels, pipelines
# whether to complain of a model that they do not know.
NAME_TABLES: dict[str, dict[str, Any]] = {
    "ChatGPTModel": modeling_auto.MODEL_MAPPING_NAMES,
    "ChatGPTForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "ChatGPTForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "ChatGPTForTokenClassification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "ChatGPTForQuestionAnswering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
}
# The modules named `transformers` that have our names.
packages: list[ModuleType] = []
PUBLIC = (CONFIG_NAME, *NAME_TABLES)


def registered(name: str) -> Any:
    """One of the public classes, after registering all of them."""
    from . import registration

    registration.register()
    return registration.CLASSES[name]


class _ModelsModule(ModuleType):
    """`transformers.models.chatgpt`, where transformers looks for the classes of this model type."""

    def __getattr__(self, name: str) -> Any:
        if name in PUBLIC:
            return registered(name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class _Imports(threading.local):
    """How many modules of the package this thread is importing, one inside the other."""

    depth = 0


_imports = _Imports()


class _RegisteringLoader(Loader):
    """Loads a module as another loader does, and registers the model when the outermost import is done: before that, modules
    that registering needs may be half imported."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module is to look as if it had been loaded without this class.
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        _imports.depth += 1
        try:
            self.loader.exec_module(module)
        finally:
            _imports.depth -= 1
        if not _imports.depth and CONFIG_MODULE in sys.modules and _Finder in sys.meta_path:
            sys.meta_path.remove(_Finder)
            registered(CONFIG_NAME)


class _Finder:
    """Finds the modules of this package, for `_RegisteringLoader`; gone once the model is registered."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        _add_names()
        if not name.startswith(f"{__package__}."):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


def announce() -> None:
    """Leaves the model's names with transformers; calling it again changes nothing."""
    if MODEL_TYPE in configuration_auto.CONFIG_MAPPING_NAMES:
        return
    configuration_auto.CONFIG_MAPPING_NAMES[MODEL_TYPE] = CONFIG_NAME
    for name, table in NAME_TABLES.items():
        table[MODEL_TYPE] = name
    module = f"transformers.models.{MODEL_TYPE}"
    sys.modules[module] = _ModelsModule(module)
    sys.meta_path.insert(0, _Finder)
    _add_names()


def _add_names() -> None:
    """Adds our names to `transformers`, if that is a module that does not have them.

    transformers puts a second module of its name in place while parts of it are imported, and both are in use then.
    """
    package = sys.modules.get("transformers")
    if package is not None and all(package is not known for known in packages):
        packages.append(package)
        package.__getattr__ = _public_names(package)  # type: ignore[method-assign]


def _public_names(package: ModuleType) -> Any:
    """A module's `__getattr__` (PEP 562) that knows our names; any others are looked for as before."""
    before = vars(package).get("__getattr__")

    def find(name: str) -> Any:
        if name in PUBLIC:
            return registered(name)
        if before is not None:
            return before(name)
        raise AttributeError(f"module {package.__name__!r} has no attribute {name!r}")

    return find

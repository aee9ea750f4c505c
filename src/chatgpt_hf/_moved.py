"""Modules by their names of release 0.1: importing one gives the names of its successor, with a DeprecationWarning.

Python asks the finder below only for modules that it does not find itself, so it costs nothing otherwise.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PACKAGE = __name__.partition(".")[0]
# Where a module was divided, its names are looked up in each part.
MOVED = {
    "cli": "chatgpt_hf_cli",
    "card": "reporting.card",
    "configuration_chatgpt": "model.configuration_chatgpt",
    "conversion.family": "conversion.families.family",
    "conversion.fused": "conversion.families.fused",
    "conversion.gpt2": "conversion.families.gpt2",
    "conversion.litgpt": "conversion.families.litgpt",
    "conversion.llama": "conversion.families.llama",
    "conversion.nanogpt": "conversion.families.nanogpt",
    "conversion.pickles": "conversion.families.pickles",
    "data.choices": "tasks.multiple_choice.rows",
    "data.conll": "tasks.token_classification.rows",
    "data.functions": "data.builtin.python_functions",
    "data.labelled": "tasks.text_classification.rows",
    "data.labels": "tasks.labels",
    "data.pairs": "tasks.generation.rows",
    "data.relations": "data.builtin.relation_texts",
    "data.spans": "tasks.question_answering.features",
    "data.squad": "tasks.question_answering.rows",
    "evaluation.answering": "tasks.question_answering.evaluation",
    "evaluation.baselines": "tasks.baselines",
    "evaluation.choices": "tasks.multiple_choice.evaluation",
    "evaluation.classification": "tasks.text_classification.evaluation",
    "evaluation.completions": "tasks.generation.evaluation",
    "evaluation.relations": "tasks.generation.triples",
    "evaluation.sandboxed": "evaluation.sandbox.confined",
    "evaluation.tagging": "tasks.token_classification.evaluation",
    "footprint": "reporting.footprint",
    "inference.attention": "inference.cpu.attention",
    "inference.kernels": "inference.cpu.packed_linear",
    "inference.pages": "inference.cpu.huge_pages",
    "inference.prompts": "inference.prompt_file",
    "interpretability.attention": "interpretability.attention_maps",
    "local_context_chatgpt": "model.local_context_chatgpt",
    "loss_chatgpt": "model.loss_chatgpt",
    "measure": "evaluate",
    "modeling_chatgpt": "model.modeling_chatgpt",
    "pipelines": "model.pipelines",
    "quantization": "inference.quantization",
    "report": "reporting.report",
    "spans": "model.spans",
    "task_report": "reporting.task_report",
    "training.task_answering": "tasks.question_answering.task",
    "training.task_arguments": "tasks.arguments training.arguments",
    "training.task_base": "tasks.base tasks.losses",
    "training.task_classification": "tasks.text_classification.task tasks.losses",
    "training.task_generation": "tasks.generation.task tasks.multiple_choice.task",
    "training.task_tagging": "tasks.token_classification.task",
    "training.tasks": "tasks.registry",
}


class _MovedModules(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, old = name.partition(".")
        return ModuleSpec(name, self) if package == _PACKAGE and old in MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        successors = MOVED[module.__name__.partition(".")[2]].split()
        where = " or ".join(_absolute(name) for name in successors)
        warnings.warn(f"{module.__name__} has moved: import from {where}.", DeprecationWarning, stacklevel=2)
        module.__getattr__ = names_of(module.__name__, *successors)  # type: ignore[method-assign]


def _absolute(successor: str) -> str:
    """The command line is a package beside this one; all other successors are modules of this one."""
    return successor if successor.startswith(_PACKAGE) else f"{_PACKAGE}.{successor}"


def names_of(module: str, *successors: str) -> Callable[[str], Any]:
    """A module's `__getattr__` (PEP 562) that looks up its former names in the modules where they are now."""

    def find(name: str) -> Any:
        # Python asks every module for dunder names such as `__path__`.
        for successor in () if name.startswith("__") else successors:
            found = import_module(_absolute(successor))
            if hasattr(found, name):
                return getattr(found, name)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return find


def keep_old_names() -> None:
    """Makes the old names importable; calling it again changes nothing."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())

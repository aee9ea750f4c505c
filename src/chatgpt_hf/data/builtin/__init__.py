"""The corpora that need no download: `load_builtin` knows their names, and each module builds one or two of them."""

import functools

from datasets import Dataset, DatasetDict

from ...errors import DataError
from . import python_docs, python_functions, python_honest, relation_texts

_BUILDERS = {
    "builtin:python-docs": python_docs.build_docs,
    "builtin:python-qa": python_docs.build_qa,
    "builtin:python-honest": python_honest.build,
    "builtin:python-functions": python_functions.build,
    "builtin:relations": relation_texts.build,
}


@functools.cache
def load_builtin(name: str) -> DatasetDict:
    """Builds one of the embedded corpora, which takes seconds the first time and is then cached.

    Args:
        name: `"builtin:python-docs"` (columns `name`, `text`: one topic, module docstring, function or whole class),
            `"builtin:python-qa"` (columns `name`, `messages`: one question by the user, one answer by the assistant),
            `"builtin:python-honest"` (the same, and questions without an answer: see `python_honest.py`),
            `"builtin:python-functions"` (columns `name`, `prompt`, `completion`: see `python_functions.py`) or
            `"builtin:relations"` (columns `prompt`, `completion`: see `relation_texts.py`).

    Returns:
        The splits `train` and `test`, in a fixed order; `test` is held out.

    Raises:
        DataError: If the name is unknown, or this Python has no library source.
    """
    if name not in _BUILDERS:
        raise DataError(f"there is no built-in corpus {name!r}; known are {', '.join(_BUILDERS)}")
    train, test = _BUILDERS[name]()
    return DatasetDict({"train": Dataset.from_list(train), "test": Dataset.from_list(test)})

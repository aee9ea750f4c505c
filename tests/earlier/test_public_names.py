"""Names that people import: those of the documentation, the notebooks and the benchmarks of version 0.1.0 still can be.

`public_names.txt` has them as `module:name`, or a module alone. It only grows: a name that moves stays importable by its old path.
"""

from importlib import import_module
from pathlib import Path

import pytest

import chatgpt_hf

NAMES = Path(__file__).with_name("public_names.txt").read_text(encoding="utf-8").split()


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_can_be_imported(name: str) -> None:
    module, _, attribute = name.partition(":")
    found = import_module(module)
    if attribute:
        assert getattr(found, attribute) is not None


def test_what_the_package_exports_is_among_them() -> None:
    assert {f"chatgpt_hf:{name}" for name in chatgpt_hf.__all__} <= set(NAMES)

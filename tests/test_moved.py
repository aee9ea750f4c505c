"""Modules that moved can be imported by their old names, with a warning that says where they are now."""

import importlib
import sys

import pytest

from chatgpt_hf._moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_every_old_module_gives_the_names_of_its_successors(old: str) -> None:
    sys.modules.pop(f"chatgpt_hf.{old}", None)
    successors = [
        importlib.import_module(name if name == "chatgpt_hf_cli" else f"chatgpt_hf.{name}")
        for name in MOVED[old].split()
    ]
    with pytest.warns(DeprecationWarning, match=f"chatgpt_hf.{old} has moved: import from {successors[0].__name__}"):
        module = importlib.import_module(f"chatgpt_hf.{old}")
    public = {name: value for successor in successors for name, value in vars(successor).items() if name[0] != "_"}
    assert public
    for name in public:
        assert getattr(module, name) in [getattr(successor, name, None) for successor in successors]


def test_an_unknown_module_or_name_is_an_error() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"chatgpt_hf\.nothing"):
        importlib.import_module("chatgpt_hf.nothing")
    sys.modules.pop("chatgpt_hf.measure", None)
    with pytest.warns(DeprecationWarning, match="chatgpt_hf.evaluate"):
        old = importlib.import_module("chatgpt_hf.measure")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        old.nothing  # noqa: B018

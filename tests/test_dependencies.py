"""What the source imports is declared in pyproject.toml, for the purpose that it is there for, and missing packages are named."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import chatgpt_hf
from chatgpt_hf.errors import ChatGPTError, MissingDependency
from chatgpt_hf.extras import EXTRA_OF, EXTRAS, needed_by, require

SOURCE = Path(chatgpt_hf.__file__).parents[1]
PROJECT = SOURCE.parent / "pyproject.toml"
# Not installed by `make`: it compiles for minutes. Run as a file of its own, after a check that it is there.
LLAMA_CPP = ("llama_cpp", "llama-cpp-python")
# Not installed for the tests: botocore holds python-dateutil back.
REMOTE = ("gcsfs", "s3fs")
CORE = {
    "accelerate",
    "datasets",
    "evaluate",
    "huggingface-hub",
    "jinja2",
    "numpy",
    "pyyaml",
    "rich",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "typer",
}
# Import one of these and everything is there that loading, generating and converting need.
CORE_MODULES = (
    "chatgpt_hf",
    "chatgpt_hf.model.pipelines",
    "chatgpt_hf.checkpoints",
    "chatgpt_hf.tokenization_chatgpt",
    "chatgpt_hf.conversion.convert",
    "chatgpt_hf.conversion.merge",
    "chatgpt_hf.export.export",
    "chatgpt_hf.hub.pull",
    "chatgpt_hf.hub.push",
    "chatgpt_hf.inference.cache",
    "chatgpt_hf.inference.compiling",
    "chatgpt_hf.inference.cpu.packed_linear",
    "chatgpt_hf.inference.loading",
    "chatgpt_hf.inference.prompt_file",
    "chatgpt_hf.inference.session",
    "chatgpt_hf.inference.quantization",
)
FILES = sorted(path for path in SOURCE.glob("chatgpt_hf*/**/*.py") if ".egg-info" not in path.as_posix())
OURS = {path.relative_to(SOURCE).parts[0] for path in FILES}

pytestmark = pytest.mark.skipif(not PROJECT.is_file(), reason="pyproject.toml is not beside an installed package")


@cache
def declared() -> dict[str, set[str]]:
    """Names of the distributions of each extra, those of the core under the empty name."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {
        extra: {canonicalize_name(Requirement(text).name) for text in texts} - {"chatgpt-hf"}
        for extra, texts in groups.items()
    }


@cache
def providers() -> dict[str, list[str]]:
    return dict(metadata.packages_distributions())


def distributions(package: str) -> set[str]:
    """The distributions that a package can be imported from."""
    if package == LLAMA_CPP[0]:
        return {LLAMA_CPP[1]}
    if package in REMOTE:
        return {package}
    return {canonicalize_name(name) for name in providers().get(package, ())}


def imports(tree: ast.AST, guarded: bool = False) -> Iterator[tuple[str, bool]]:
    """Packages that a file imports from others, and whether that is inside `with needed_by(...)`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module]
        for package in {name.partition(".")[0] for name in names}:
            if package not in OURS and package not in sys.stdlib_module_names:
                yield package, guarded
        inside = isinstance(node, ast.With) and any("needed_by(" in ast.unparse(item) for item in node.items)
        yield from imports(node, guarded or inside)


@cache
def comes_with_the_core(package: str) -> bool:
    """Whether a distribution of the core requires it, so that it is never missing."""
    required = {
        canonicalize_name(requirement.name)
        for name in CORE
        for requirement in map(Requirement, metadata.requires(name) or ())
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }
    return bool(distributions(package) & required)


def test_the_core_is_what_loading_generating_converting_and_trainer_need() -> None:
    assert declared()[""] == CORE


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_what_is_imported_is_declared(path: Path) -> None:
    core = declared()[""]
    text = path.read_text(encoding="utf-8")
    for package, guarded in imports(ast.parse(text)):
        if distributions(package) & core:
            continue
        assert package in EXTRA_OF, f"{package} is neither in the core nor in an extra: pyproject.toml, extras.py"
        assert (
            guarded
            or comes_with_the_core(package)
            or f'"{package}")' in text  # `require(purpose, "package")` before
            or path.name == "llama_cpp_logits.py"
        ), f"{package} is imported outside `with needed_by(...)`"


def test_the_table_of_extras_is_that_of_pyproject() -> None:
    extras = declared()
    for extra, packages in EXTRAS.items():
        found = set()
        for package in packages:
            names = distributions(package) & extras[extra]
            assert names, f"{package} is in no distribution that [{extra}] has"
            found |= names
        # transformers is there for `transformers[serving]`.
        assert extras[extra] - found <= {"transformers"}
    assert set(extras) - set(EXTRAS) == {"", "dev", "docs"}


def test_dev_has_every_extra_that_does_not_compile_or_hold_others_back() -> None:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    ours = [
        requirement
        for requirement in map(Requirement, project["optional-dependencies"]["dev"])
        if requirement.name == "chatgpt-hf"
    ]
    assert set().union(*(requirement.extras for requirement in ours)) == {*EXTRAS, "docs"} - {"llama-cpp", "remote"}


HIDE = """
import importlib.abc, importlib.util, sys
hidden = set({hidden!r})
for name in hidden:
    sys.modules[name] = None
"""


def run(hidden: list[str], script: str) -> str:
    """Runs a script in a process where these packages look as if they were not installed."""
    command = [sys.executable, "-c", HIDE.format(hidden=hidden) + script]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_the_core_works_without_the_extras() -> None:
    hidden = [package for package in EXTRA_OF if not comes_with_the_core(package)]
    assert {"trl", "scipy", "sklearn", "matplotlib", "peft"} <= set(hidden)
    script = f"""
from importlib import import_module
for name in {CORE_MODULES!r}:
    import_module(name)
from chatgpt_hf import ChatGPTError
for name in ("pretrain", "sft", "pack_documents"):
    try:
        getattr(import_module("chatgpt_hf"), name)
    except ChatGPTError as error:
        print(error)
from chatgpt_hf.evaluation.metrics import load_metric
load_metric("accuracy")
try:
    load_metric("bleu")
except ChatGPTError as error:
    print(error)
"""
    training = "Training needs trl, which is not installed: pip install 'chatgpt-hf[train]'"
    bleu = "BLEU needs sacrebleu, which is not installed: pip install 'chatgpt-hf[train]'"
    assert run(hidden, script).splitlines() == [training, training, training, bleu]


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependency) as caught, needed_by("A picture"):
        import scipy.sparse  # noqa: F401
    assert str(caught.value) == "A picture needs scipy, which is not installed: pip install 'chatgpt-hf[train]'"
    # As a library's own absence is: what tries an import goes on.
    assert isinstance(caught.value, ChatGPTError)
    assert isinstance(caught.value, ImportError)
    with pytest.raises(
        MissingDependency, match=r"scipy and peft, which are not installed: .*'chatgpt-hf\[train,peft\]'$"
    ):
        require("All", "scipy", "torchdata", "peft")
    require("All", "torchdata")


def test_a_broken_package_keeps_its_own_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "captum.py").write_text("import a_package_that_nobody_has\n")
    (tmp_path / "gguf.py").write_text("from os import nothing_of_this_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("captum", "gguf"):
        for loaded in [key for key in sys.modules if key.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, loaded)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_nobody_has") as missing, needed_by("A picture"):
        import captum  # noqa: F401
    assert not isinstance(missing.value, ChatGPTError)
    with pytest.raises(ImportError, match="nothing_of_this_name") as broken, needed_by("A picture"):
        import gguf  # noqa: F401
    assert not isinstance(broken.value, ChatGPTError)
    require("Both", "captum", "gguf")

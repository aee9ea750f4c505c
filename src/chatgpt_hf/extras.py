"""The packages that only a part of the work needs, by the extra that installs them, and the message for a missing one.

A module imports such a package inside `with needed_by("Training"):`. Code that must know before it begins asks `require`.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .errors import MissingDependency

# Names that are imported, not those of the distributions. pyproject.toml has the releases.
EXTRAS: dict[str, tuple[str, ...]] = {
    "train": (
        "charset_normalizer",
        "filelock",
        "fsspec",
        "jsonschema",
        "matplotlib",
        "pandas",
        "psutil",
        "pyarrow",
        "referencing",
        "regex",
        "rouge_score",
        "sacrebleu",
        "scipy",
        "seqeval",
        "sklearn",
        "torchdata",
        "tqdm",
        "trl",
    ),
    "peft": ("peft",),
    "moderation": ("confusable_homoglyphs",),
    "ui": ("gradio",),
    "serve": ("fastapi", "openai", "prometheus_client", "pydantic", "starlette", "uvicorn"),
    "eval": ("lm_eval",),
    "export": ("executorch", "gguf", "onnx", "onnxruntime", "onnxscript", "openvino"),
    "llama-cpp": ("llama_cpp",),
    "explain": ("captum",),
    "quantize": ("bitsandbytes", "torchao"),
    "zst": ("zstandard",),
    "remote": ("gcsfs", "s3fs"),
}
EXTRA_OF = {package: extra for extra, packages in EXTRAS.items() for package in packages}


def require(purpose: str, *packages: str) -> None:
    """Checks that packages are installed, without importing them.

    Args:
        purpose: What needs them; the message begins with it.
        *packages: Keys of `EXTRA_OF`.

    Raises:
        MissingDependency: Naming the packages that are missing and the command that installs them.
    """
    if missing := [package for package in packages if not _is_installed(package)]:
        raise MissingDependency(_message(purpose, missing))


@contextmanager
def needed_by(purpose: str) -> Iterator[None]:
    """Imports inside the block raise `MissingDependency` if the package belongs to an extra and is not installed.

    A package that is installed but cannot be imported keeps its own error: installing it again would not help.

    Args:
        purpose: What needs the package; the message begins with it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF or _is_installed(package):
            raise
        raise MissingDependency(_message(purpose, [package])) from None


def missing_packages(extra: str) -> list[str]:
    """The packages of an extra that are not installed."""
    return [package for package in EXTRAS[extra] if not _is_installed(package)]


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _message(purpose: str, missing: Sequence[str]) -> str:
    extras = ",".join(dict.fromkeys(EXTRA_OF[package] for package in missing))
    are = "is" if len(missing) == 1 else "are"
    return f"{purpose} needs {' and '.join(missing)}, which {are} not installed: pip install 'chatgpt-hf[{extras}]'"

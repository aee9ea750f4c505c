"""Decides which files of a folder belong to the model and are uploaded."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from ..checkpoints import BASE_SAMPLE_NAME, check_finite_file, check_safetensors
from ..errors import CheckpointError, ConfigError
from ..files import read_json
from ..reporting.card import CARD_NAME
from ..stored import ABSTENTION_NAME, check_shards, safetensors_files
from ..training.run_folder import DATA_NAME, RECIPE_NAME, is_whole_checkpoint
from ..untrusted import check_files, check_link

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
PICKLED_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
# Full names instead of extensions: a folder may also have data, notes and keys that end in .json or .txt.
_PUBLISHED = (
    *WEIGHTS,
    CONFIG_NAME,
    ADAPTER_CONFIG_NAME,
    BASE_SAMPLE_NAME,
    ABSTENTION_NAME,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    CARD_NAME,
    "LICENSE*",
    "LICENCE*",
    "COPYING*",
    "USE_POLICY*",
    "NOTICE*",
    RECIPE_NAME,
    DATA_NAME,
    "results.json",
    "report/*",
    "evaluation/*",
)
# Never uploaded, even if included explicitly: training state and pickles.
_NEVER = ("*.pt", "*.pth", "*.bin", "*.ckpt", "*.pkl", "*.pickle", "trainer_state.json", "data_state_*.json")
_NEVER_FOLDERS = ("checkpoint-*", "__pycache__")


@dataclass(frozen=True)
class FolderFiles:
    """The files of a folder that are uploaded, and those that are not.

    Attributes:
        files: By path in the repository.
        left_out: Names of files that are not uploaded; a folder that is left out as a whole ends with a slash.
    """

    files: dict[str, Path]
    left_out: list[str]


def published_files(folder: Path, *, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> FolderFiles:
    """Returns the files of a model folder that belong to the model.

    Args:
        folder: The model's folder.
        include: Patterns of more files. Hidden files, pickles and training state are left out even so.
        exclude: Patterns of files to leave out; overrides `include`.

    Raises:
        CheckpointError: If one of them is a link that leaves the folder: its target would be published.
    """
    wanted = (*_PUBLISHED, *include, *_code(folder))
    files, left_out = {}, []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if matches(name, wanted) and not stays(name, _NEVER) and not matches(name, exclude):
            check_link(path, folder)
            files[name] = path
        else:
            left_out.append(name)
    tops = {name.partition("/")[0] for name in files if "/" in name}
    folded = {name if (top := name.partition("/")[0]) in tops or "/" not in name else f"{top}/" for name in left_out}
    return FolderFiles(files, sorted(folded))


def stays(name: str, endings: Sequence[str]) -> bool:
    """True for files that are never transferred: hidden ones, those in checkpoints or caches, and these endings."""
    *folders, last = name.split("/")
    hidden = any(part.startswith(".") for part in (*folders, last))
    return hidden or matches(last, endings) or any(matches(part, _NEVER_FOLDERS) for part in folders)


def check_model_folder(folder: Path) -> None:
    """Raises `CheckpointError` unless a folder has a complete model in safetensors, with finite weights."""
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder {folder}: name one that `save_pretrained` wrote.")
    check_files(folder)
    configs = [folder / name for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME) if (folder / name).is_file()]
    if not configs:
        raise CheckpointError(
            f"{folder} does not contain a model: {CONFIG_NAME} is missing. Name a folder that `save_pretrained` wrote."
        )
    weights = safetensors_files(folder)
    if not weights:
        pickled = f" ({WEIGHTS_NAME} is a pickle, which can run code when loaded)" if _pickled(folder) else ""
        raise CheckpointError(
            f"{folder} has no weights in safetensors{pickled}: save the model again with `save_pretrained`, or run "
            "`chatgpt-hf convert` on it."
        )
    for file in weights:
        check_safetensors(file)
    check_shards(folder)
    for file in weights:
        check_finite_file(file)


def checkpoint_files(folder: Path) -> dict[int, dict[str, Path]]:
    """Returns the files of every complete checkpoint of a run, by step, with the run's own files that all steps share.

    Raises:
        ConfigError: If there is none.
    """
    run = {
        name: path
        for name, path in published_files(folder).files.items()
        if "/" not in name and not matches(name, (*WEIGHTS, CARD_NAME, "results.json"))
    }
    found = {}
    for checkpoint in folder.glob("checkpoint-*"):
        step = checkpoint.name.rpartition("-")[2]
        if not step.isdigit() or not is_whole_checkpoint(checkpoint):
            continue
        check_model_folder(checkpoint)
        own = {name: path for name, path in published_files(checkpoint).files.items() if name != CARD_NAME}
        found[int(step)] = {**run, **own}
    if not found:
        raise ConfigError(
            f"--checkpoints: {folder} has no complete checkpoint-N. Leave it out to send only the model."
        )
    return dict(sorted(found.items()))


def _code(folder: Path) -> set[str]:
    """Returns the Python files that a config names, and their imports from the folder; other Python files are private."""
    references: list[Any] = []
    for name in (CONFIG_NAME, "tokenizer_config.json"):
        config = read_json(folder / name)
        references += (config.get("auto_map") or {}).values()
        references += (pipeline.get("impl") for pipeline in (config.get("custom_pipelines") or {}).values())
    # A tokenizer has a slow and a fast class.
    named = [one for reference in references for one in (reference if isinstance(reference, list) else [reference])]
    files = {folder / f"{one.rpartition('--')[2].partition('.')[0]}.py" for one in named if isinstance(one, str)}
    files = {file for file in files if file.is_file()}
    imported = {name for file in files for name in get_relative_import_files(file)}
    return {file.name for file in files} | {Path(name).name for name in imported}


def _pickled(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME))


def is_weights(name: str) -> bool:
    """True if a path in a repository is a file with a model's weights, or an index of such files."""
    return matches(name, (*WEIGHTS, *PICKLED_WEIGHTS))


def matches(name: str, patterns: Sequence[str]) -> bool:
    """True if a pattern matches. Patterns without a slash match only top-level files."""
    fitting = [pattern for pattern in patterns if "/" in pattern or "/" not in name]
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in fitting)

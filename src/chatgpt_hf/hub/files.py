"""Which files of a folder are the model's own, and so for others."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from ..checkpoints import BASE_SAMPLE_NAME, check_safetensors
from ..errors import CheckpointError, ConfigError
from ..files import read_json
from ..reporting.card import CARD_NAME
from ..training.run_folder import DATA_NAME, RECIPE_NAME, is_whole_checkpoint, last_whole_checkpoint

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
PICKLED_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
# Names, and not endings: a folder may hold data, notes and keys that end in .json or .txt too.
_PUBLISHED = (
    *WEIGHTS,
    CONFIG_NAME,
    ADAPTER_CONFIG_NAME,
    BASE_SAMPLE_NAME,
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
    "NOTICE*",
    RECIPE_NAME,
    DATA_NAME,
    "results.json",
    "report/*",
    "evaluation/*",
)
# Not even where they are asked for: what only a training needs, and what runs code when it is read.
_NEVER = ("*.pt", "*.pth", "*.bin", "*.ckpt", "*.pkl", "*.pickle", "trainer_state.json", "data_state_*.json")
_NEVER_FOLDERS = ("checkpoint-*", "__pycache__")


@dataclass(frozen=True)
class FolderFiles:
    """What is sent of a folder, and what is not.

    Attributes:
        files: By path in the repository.
        left_out: Names of files, and of folders as a whole with a slash at their end, that stay here.
    """

    files: dict[str, Path]
    left_out: list[str]


def published_files(folder: Path, *, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> FolderFiles:
    """The files of a model folder that are the model's own.

    Args:
        folder: Of a model.
        include: Patterns of more of them. Hidden files, pickles and what only a training needs stay here all the same.
        exclude: Patterns of those to leave out; wins.
    """
    wanted = (*_PUBLISHED, *include, *_code(folder))
    files, left_out = {}, []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if matches(name, wanted) and not stays(name, _NEVER) and not matches(name, exclude):
            files[name] = path
        else:
            left_out.append(name)
    tops = {name.partition("/")[0] for name in files if "/" in name}
    folded = {name if (top := name.partition("/")[0]) in tops or "/" not in name else f"{top}/" for name in left_out}
    return FolderFiles(files, sorted(folded))


def stays(name: str, endings: Sequence[str]) -> bool:
    """Whether a file never travels: a hidden one, one in a checkpoint or cache, or one of these kinds."""
    *folders, last = name.split("/")
    hidden = any(part.startswith(".") for part in (*folders, last))
    return hidden or matches(last, endings) or any(matches(part, _NEVER_FOLDERS) for part in folders)


def check_model_folder(folder: Path) -> None:
    """Raises `CheckpointError` where a folder holds no whole model in safetensors."""
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder {folder}; name one that `save_pretrained` wrote.")
    configs = [folder / name for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME) if (folder / name).is_file()]
    if not configs:
        raise CheckpointError(
            f"{folder} does not contain a model: {CONFIG_NAME} is missing. Name a folder that `save_pretrained` wrote."
        )
    for file in configs:
        read_json(file)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = f" {WEIGHTS_NAME} is a pickle, which runs code when it is read:" if _pickled(folder) else ""
        raise CheckpointError(
            f"{folder} holds no weights in safetensors.{pickled} save the model again with `save_pretrained`, or "
            "`chatgpt-hf convert` it."
        )
    for file in weights:
        check_safetensors(file)
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        named = set((read_json(index).get("weight_map") or {}).values())
        if missing := sorted(named - {file.name for file in weights}):
            raise CheckpointError(f"{index} names {missing[0]}, which is not there: save or copy the model again.")


def checkpoint_files(folder: Path) -> dict[int, dict[str, Path]]:
    """The files of every whole checkpoint of a run, by its step; what belongs to the run and not to a step is the run's.

    Raises:
        ConfigError: When there is none.
    """
    if last_whole_checkpoint(folder) is None:
        raise ConfigError(
            f"--checkpoints: {folder} holds no whole checkpoint-N. Leave it out to send the model alone."
        )
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
    return dict(sorted(found.items()))


def _code(folder: Path) -> set[str]:
    """The Python files that a config names, and what they import of the folder; others are somebody's own."""
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
    """Whether a path in a repository is one of the files that a model's weights are loaded from."""
    return matches(name, (*WEIGHTS, *PICKLED_WEIGHTS))


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern fits. One without a slash is for files at the top."""
    fitting = [pattern for pattern in patterns if "/" in pattern or "/" not in name]
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in fitting)

"""A model from the Hub as a plain folder."""

import glob
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.hf_api import RepoFile
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from ..checkpoints import check_safetensors
from ..errors import CheckpointError, HubError, OutputError
from ..files import clear_disk_errors
from .connection import check_repo_id, client, hub_errors
from .files import WEIGHTS, is_weights, matches, stays

# Weights in forms that other programs read, and pickles.
_OTHER_FORMS = (
    *("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.ot", "*.tflite"),
    *("*.onnx", "*.onnx_data", "*.gguf", "*.mlmodel"),
)


@dataclass
class Pulled:
    """What came.

    Attributes:
        commit: Whose state the folder is.
        files: Sizes in bytes, by path.
        left_out: What of the repository did not come.
    """

    commit: str
    files: dict[str, int]
    left_out: list[str]


def pull(repo_id: str, folder: str | Path, *, revision: str | None = None, token: str | None = None) -> Pulled:
    """Brings a model's files from the Hub into a new folder, which appears when all of them are there.

    Weights come as safetensors where the repository has them, and as pickles only where it has nothing else. A download that
    broke off is gone on with by calling it again. Python files of the repository come too; nothing runs them.

    Args:
        folder: One that does not exist, or is empty.
        revision: Branch, tag or commit; `main` if None.
        token: `HF_TOKEN`, or that of `hf auth login`, or none, if None.

    Raises:
        OutputError: When the folder holds something, or cannot be written.
        CheckpointError: When the repository holds no model.
        HubError: When there is no such repository or revision, or the connection was lost.
    """
    check_repo_id(repo_id)
    folder = Path(folder).resolve()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise OutputError(f"{folder} is not empty: name a new folder for {repo_id}, or empty this one.")
    api = client(token)
    again = "Run the same command again: what came whole does not come again."
    with clear_disk_errors(folder), hub_errors(repo_id, revision=revision, after=again):
        commit = str(api.model_info(repo_id, revision=revision).sha)
        tree = api.list_repo_tree(repo_id, recursive=True, revision=commit)
        sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
        wanted = _wanted(list(sizes), repo_id)
        # Beside the folder, so that it is renamed in one step, and named so that the next try finds it.
        partial = folder.with_name(f".{folder.name}-{commit[:12]}")
        api.snapshot_download(
            repo_id, revision=commit, local_dir=partial, allow_patterns=[glob.escape(name) for name in wanted]
        )
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        # The client is content with what is there when the connection ends at some moments.
        if short := [name for name in wanted if not _has_size(partial / name, sizes[name])]:
            raise HubError(f"{short[0]} of {repo_id} did not come whole. {again}")
        for file in partial.glob("*.safetensors"):
            check_safetensors(file)
        if folder.is_dir():
            folder.rmdir()
        os.replace(partial, folder)
    return Pulled(commit, {name: sizes[name] for name in sorted(wanted)}, sorted(sizes.keys() - set(wanted)))


def _has_size(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def _wanted(names: list[str], repo_id: str) -> list[str]:
    if not {CONFIG_NAME, ADAPTER_CONFIG_NAME} & set(names):
        raise CheckpointError(
            f"{repo_id} does not contain a model: it has {', '.join(sorted(names)[:5]) or 'no files'}, and no {CONFIG_NAME}."
        )
    wanted = [name for name in names if not stays(name, _OTHER_FORMS)]
    if not any(matches(name, WEIGHTS) for name in wanted):
        wanted += [name for name in names if is_weights(name)]
    return wanted

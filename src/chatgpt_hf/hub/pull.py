"""Downloads a model from the Hub into a plain folder."""

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

# Pickles, and weights in formats of other programs.
_OTHER_FORMS = (
    *("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.ot", "*.tflite"),
    *("*.onnx", "*.onnx_data", "*.gguf", "*.mlmodel"),
)


@dataclass
class Pulled:
    """The result of a download.

    Attributes:
        commit: The downloaded commit.
        files: Sizes in bytes, by path.
        left_out: Files of the repository that were not downloaded.
    """

    commit: str
    files: dict[str, int]
    left_out: list[str]


def pull(repo_id: str, folder: str | Path, *, revision: str | None = None, token: str | None = None) -> Pulled:
    """Downloads a model's files from the Hub into a new folder, which appears when the download is complete.

    Downloads weights as safetensors if the repository has them, and as pickles only if it has nothing else. Calling it again
    resumes an interrupted download. Python files of the repository are downloaded too, but not run.

    Args:
        folder: A folder that does not exist, or is empty.
        revision: Branch, tag or commit; None for `main`.
        token: None for `HF_TOKEN`, or the token of `hf auth login`, or no token.

    Raises:
        OutputError: If the folder is not empty, or cannot be written.
        CheckpointError: If the repository has no model.
        HubError: If there is no such repository or revision, or the connection is lost.
    """
    check_repo_id(repo_id)
    folder = Path(folder).resolve()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise OutputError(f"{folder} is not empty: name a new folder for {repo_id}, or empty this one.")
    api = client(token)
    again = "Run the same command again: complete files are not downloaded again."
    with clear_disk_errors(folder), hub_errors(repo_id, revision=revision, after=again):
        commit = str(api.model_info(repo_id, revision=revision).sha)
        tree = api.list_repo_tree(repo_id, recursive=True, revision=commit)
        sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
        wanted = _wanted(list(sizes), repo_id)
        # Next to the folder, so that one rename completes it; the name lets the next attempt find it.
        partial = folder.with_name(f".{folder.name}-{commit[:12]}")
        api.snapshot_download(
            repo_id, revision=commit, local_dir=partial, allow_patterns=[glob.escape(name) for name in wanted]
        )
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        # If the connection ends at certain moments, the client accepts incomplete files.
        if short := [name for name in wanted if not _has_size(partial / name, sizes[name])]:
            raise HubError(f"{short[0]} of {repo_id} was not downloaded completely. {again}")
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
            f"{repo_id} does not contain a model: it has {', '.join(sorted(names)[:5]) or 'no files'}, but no {CONFIG_NAME}."
        )
    wanted = [name for name in names if not stays(name, _OTHER_FORMS)]
    if not any(matches(name, WEIGHTS) for name in wanted):
        wanted += [name for name in names if is_weights(name)]
    return wanted

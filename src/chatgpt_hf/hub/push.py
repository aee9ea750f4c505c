"""Uploads a model folder to the Hub as one commit, and the checkpoints of its run as branches."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoFile

from .. import __version__
from ..errors import ConfigError, HubError
from ..reporting.card import (
    CARD_NAME,
    check_card,
    given_metadata,
    make_card,
    read_card,
    read_facts,
    render_card,
    write_card,
)
from ..training.run_folder import RECIPE_NAME
from .connection import check_repo_id, client, hub_errors
from .files import WEIGHTS, check_model_folder, checkpoint_files, matches, published_files

MAIN = "main"
# The Hub writes this file itself; it lists the files in large file storage.
_OF_THE_HUB = (".gitattributes",)


@dataclass
class Pushed:
    """The result of an upload, or of a dry run.

    Attributes:
        repo_id: The repository; with its namespace once the Hub has named it.
        revision: The branch.
        files: Sizes in bytes, by path in the repository.
        left_out: Files of the folder that are not uploaded; folders end with a slash.
        card: The text of README.md.
        url: The repository's address; empty if nothing was sent.
        commits: By branch; if nothing had changed, the existing commit.
        steps: Steps of the checkpoints that are uploaded too.
    """

    repo_id: str
    revision: str
    files: dict[str, int]
    left_out: list[str]
    card: str
    url: str = ""
    commits: dict[str, str] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
    checkpoints: bool = False,
    overwrite: bool = False,
    message: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Pushed:
    """Uploads a model folder to the Hub as one commit: afterwards all of it is there, or nothing.

    Uploads the files first, then makes the commit that names them; files that an interrupted upload left on the Hub are not
    sent again. If the folder's README.md is missing or was made by us, it is replaced by the uploaded model card.

    Args:
        folder: A folder that `save_pretrained` or a run wrote.
        repo_id: `me/my-model`, or `my-model` for the token's owner; created if it does not exist.
        private: Visibility of a new repository; None for the owner's default.
        revision: Branch, created from `main` if it does not exist; None for `main`.
        token: None for `HF_TOKEN`, or the token of `hf auth login`.
        dry_run: Contact nothing and write nothing.
        checkpoints: Also upload each complete checkpoint-N of the run, as branch step-N.
        overwrite: Replace another model's files on the branch by this folder's. The history keeps the old files.
        message: The commit message.
        include: Patterns of more files of the folder.
        exclude: Patterns of files to leave out.

    Raises:
        CheckpointError: If the folder has no complete model.
        CardError: If the card has metadata that the Hub rejects.
        ConfigError: If the repository's name is invalid, or there are no checkpoints.
        HubError: If the Hub refuses, has another model there, or cannot be reached.
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    check_model_folder(folder)
    branch = revision or MAIN
    if checkpoints and branch != MAIN:
        raise ConfigError(f"--checkpoints writes branches step-N, but --revision is {branch}: give one of the two.")
    steps = checkpoint_files(folder) if checkpoints else {}
    card = make_card(folder, repo_id)
    found = published_files(folder, include=include, exclude=exclude)
    sizes = {name: path.stat().st_size for name, path in found.files.items()} | {CARD_NAME: len(card.encode())}
    pushed = Pushed(repo_id, branch, dict(sorted(sizes.items())), found.left_out, card, steps=list(steps))
    if dry_run:
        return pushed

    api = client(token, write=True)
    lost = "Commits are all or nothing. Run the same command again: files that the Hub has already are not sent again."
    with hub_errors(repo_id, revision=revision, after=lost):
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        pushed.repo_id, pushed.url = repo.repo_id, str(repo)
        _check_visibility(api, repo.repo_id, private)
        # If no namespace was given, the card's name of the repository is known only now.
        pushed.card = make_card(folder, repo.repo_id)
        write_card(folder, pushed.card)
        files: dict[str, Path | bytes] = {**found.files, CARD_NAME: folder / CARD_NAME}
        title = message or f"Upload {repo.repo_id.rpartition('/')[2]} with chatgpt_hf {__version__}"
        pushed.commits[branch] = _commit(api, repo.repo_id, branch, files, title, overwrite=overwrite)
        for step, own in steps.items():
            text = _card_of_checkpoint(folder, repo.repo_id, step)
            files = {**own, CARD_NAME: text.encode()}
            name = f"step-{step}"
            title = f"Checkpoint after {step} steps"
            pushed.commits[name] = _commit(api, repo.repo_id, name, files, title, overwrite=overwrite)
    return pushed


def _card_of_checkpoint(folder: Path, name: str, step: int) -> str:
    metadata = given_metadata(read_card(folder / CARD_NAME))
    text = render_card(folder, name, read_facts(folder), metadata=metadata, step=step)
    check_card(text, folder / CARD_NAME)
    return text


def _check_visibility(api: HfApi, repo_id: str, private: bool | None) -> None:
    """Raises if an existing repository has the wrong visibility, so that no private model becomes public."""
    found = api.model_info(repo_id).private
    if private is not None and bool(found) != private:
        is_now, wanted = ("private", "public") if found else ("public", "private")
        raise HubError(
            f"{repo_id} is {is_now}, but --{wanted} is set. Nothing was sent: change the repository's settings, or leave out "
            f"--{wanted}."
        )


def _commit(
    api: HfApi, repo_id: str, branch: str, files: Mapping[str, Path | bytes], title: str, *, overwrite: bool
) -> str:
    """Commits all files on top of the commit that was checked, and returns the new id."""
    own = branch == MAIN or _has_commits(api, repo_id, branch)
    head = api.model_info(repo_id, revision=branch).sha
    tree = api.list_repo_tree(repo_id, recursive=True, revision=head)
    there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile) and entry.path not in _OF_THE_HUB}
    operations = {name: CommitOperationAdd(name, source) for name, source in files.items()}
    if there and own and not overwrite and not _is_same_model(there, operations, files):
        raise HubError(
            f"{repo_id} (revision {branch}) already has other content: {_listed(there)}. Nothing was sent. Name another "
            "repository, or a branch with --revision; or add --overwrite to replace all files of the revision by this "
            "folder's (its history keeps the others)."
        )
    # Old weights that stay behind could be loaded instead of the new ones.
    stale = [name for name in there if name not in files and (overwrite or not own or matches(name, WEIGHTS))]
    commit = api.create_commit(
        repo_id,
        [*(CommitOperationDelete(name, is_folder=False) for name in stale), *operations.values()],
        commit_message=title,
        revision=branch,
        parent_commit=head,
    )
    return commit.oid


def _has_commits(api: HfApi, repo_id: str, branch: str) -> bool:
    """Creates a missing branch from `main`; returns whether an existing one has commits that `main` lacks."""
    if not api.revision_exists(repo_id, branch):
        api.create_branch(repo_id, branch=branch)
        return False
    of_main = {commit.commit_id for commit in api.list_repo_commits(repo_id)}
    return api.model_info(repo_id, revision=branch).sha not in of_main


def _is_same_model(
    there: Mapping[str, RepoFile], operations: Mapping[str, CommitOperationAdd], files: Mapping[str, Path | bytes]
) -> bool:
    """True if a repository has the same model, possibly in another state: the same run, or the same weights."""
    if RECIPE_NAME in there and RECIPE_NAME in files and there[RECIPE_NAME].blob_id == _git_hash(files[RECIPE_NAME]):
        return True
    weights = [name for name in files if matches(name, WEIGHTS)]
    return all(name in there and _same_file(there[name], operations[name], files[name]) for name in weights)


def _same_file(entry: RepoFile, operation: CommitOperationAdd, source: Path | bytes) -> bool:
    if entry.lfs is not None:
        return entry.lfs.sha256 == operation.upload_info.sha256.hex()
    return entry.blob_id == _git_hash(source)


def _git_hash(source: Path | bytes) -> str:
    content = source if isinstance(source, bytes) else source.read_bytes()
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


def _listed(names: Mapping[str, RepoFile]) -> str:
    first = sorted(names)[:5]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")

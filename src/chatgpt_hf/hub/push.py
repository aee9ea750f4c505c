"""A model folder as one commit on the Hub, and the checkpoints of its run as branches."""

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
# The Hub writes it itself: it says which files are kept in large file storage.
_OF_THE_HUB = (".gitattributes",)


@dataclass
class Pushed:
    """What was sent, or would be.

    Attributes:
        repo_id: With its namespace, once the Hub has said it.
        revision: The branch.
        files: Sizes in bytes, by path in the repository.
        left_out: What of the folder stays here; folders end in a slash.
        card: The text of README.md.
        url: Of the repository; empty where nothing was sent.
        commits: By branch; where nothing had changed, the commit that was there.
        steps: Of the checkpoints that go along.
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
    """Sends a model folder to the Hub as one commit: all of it is there afterwards, or nothing.

    Files go first and the commit, which names them, last; what an upload that broke off has left on the Hub is not sent
    again. The folder's README.md becomes the model card that is sent, where it is missing or was made here.

    Args:
        folder: That `save_pretrained` or a run wrote.
        repo_id: `me/my-model`, or `my-model` for the token's owner; made where there is none.
        private: Whether a new repository is; as the owner's settings say if None.
        revision: Branch, made from `main` where there is none; `main` if None.
        token: `HF_TOKEN`, or that of `hf auth login`, if None.
        dry_run: Contact nothing and write nothing.
        checkpoints: Send each whole checkpoint-N of the run too, as the branch step-N.
        overwrite: Let the branch hold this folder's files in place of another model's. History keeps what was there.
        message: Of the commit.
        include: Patterns of more files of the folder.
        exclude: Patterns of files to leave out.

    Raises:
        CheckpointError: When the folder holds no whole model.
        CardError: When the card has metadata that the Hub refuses.
        ConfigError: When the repository's name cannot be, or there are no checkpoints.
        HubError: When the Hub refuses, holds another model there, or cannot be reached.
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    check_model_folder(folder)
    branch = revision or MAIN
    if checkpoints and branch != MAIN:
        raise ConfigError(f"--checkpoints makes branches step-N, and --revision is {branch}: give one of the two.")
    steps = checkpoint_files(folder) if checkpoints else {}
    card = make_card(folder, repo_id)
    found = published_files(folder, include=include, exclude=exclude)
    sizes = {name: path.stat().st_size for name, path in found.files.items()} | {CARD_NAME: len(card.encode())}
    pushed = Pushed(repo_id, branch, dict(sorted(sizes.items())), found.left_out, card, steps=list(steps))
    if dry_run:
        return pushed

    api = client(token, write=True)
    lost = "A commit is made whole or not at all. Run the same command again: what the Hub has received whole is not sent again."
    with hub_errors(repo_id, revision=revision, after=lost):
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        pushed.repo_id, pushed.url = repo.repo_id, str(repo)
        _check_visibility(api, repo.repo_id, private)
        # Only now is it known where readers find it, if no namespace was given.
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
    """What exists keeps its visibility, and a model that was to be private must not become public by that."""
    found = api.model_info(repo_id).private
    if private is not None and bool(found) != private:
        is_now, wanted = ("private", "public") if found else ("public", "private")
        raise HubError(
            f"{repo_id} is {is_now} and was to be {wanted}. Nothing was sent: change it in the repository's settings, or leave "
            f"out --{wanted}."
        )


def _commit(
    api: HfApi, repo_id: str, branch: str, files: Mapping[str, Path | bytes], title: str, *, overwrite: bool
) -> str:
    """Makes one commit of all files, on top of what was looked at, and returns its id."""
    own = branch == MAIN or _has_commits(api, repo_id, branch)
    head = api.model_info(repo_id, revision=branch).sha
    tree = api.list_repo_tree(repo_id, recursive=True, revision=head)
    there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile) and entry.path not in _OF_THE_HUB}
    operations = {name: CommitOperationAdd(name, source) for name, source in files.items()}
    if there and own and not overwrite and not _is_same_model(there, operations, files):
        raise HubError(
            f"{repo_id} (revision {branch}) holds something else already: {_listed(there)}. Nothing was sent. Name another "
            "repository, or a branch with --revision; or add --overwrite, and the revision holds this folder's files alone, "
            "while its history keeps the others."
        )
    # Weights that nothing names any more would be loaded in place of the new.
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
    """Makes a branch from `main` where there is none, and says whether one that was there has commits of its own."""
    if not api.revision_exists(repo_id, branch):
        api.create_branch(repo_id, branch=branch)
        return False
    of_main = {commit.commit_id for commit in api.list_repo_commits(repo_id)}
    return api.model_info(repo_id, revision=branch).sha not in of_main


def _is_same_model(
    there: Mapping[str, RepoFile], operations: Mapping[str, CommitOperationAdd], files: Mapping[str, Path | bytes]
) -> bool:
    """Whether a repository holds what is sent, or another state of it: the same run's, or the same weights."""
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

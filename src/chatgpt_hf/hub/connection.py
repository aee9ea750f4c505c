"""The Hub's client, and its failures as errors that a user can act on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from .. import __version__
from ..errors import CardError, ChatGPTError, ConfigError, HubError

_LOG_IN = "`hf auth login`, or put one into the environment variable HF_TOKEN (https://huggingface.co/settings/tokens)"


def check_repo_id(repo_id: str) -> None:
    """Raises `ConfigError` where something cannot be the name of a repository."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(f"{repo_id!r} is no repository: name it NAMESPACE/NAME, as me/my-model. {error}") from error


def client(token: str | None, *, write: bool = False) -> HfApi:
    """The Hub's client, at `HF_ENDPOINT` where that is set.

    Args:
        token: `HF_TOKEN`, or that of `hf auth login`, if None.
        write: Whether it is to write, for which a token is needed.

    Raises:
        HubError: When it is to write and there is no token.
    """
    if write and not (token or get_token()):
        raise HubError(
            f"There is no token to write to the Hub with: log in with {_LOG_IN}. It needs the right to write."
        )
    return HfApi(token=token, library_name="chatgpt_hf", library_version=__version__)


def check_access(repo_id: str, token: str | None) -> None:
    """Raises an error where a repository's name cannot be, or the token is missing or not accepted."""
    check_repo_id(repo_id)
    with hub_errors(repo_id):
        client(token, write=True).whoami()


@contextmanager
def hub_errors(repo_id: str, *, revision: str | None = None, after: str = "") -> Iterator[None]:
    """Turns what the client raises into errors of the package.

    Args:
        after: What holds when the connection was lost, as a sentence.

    Raises:
        HubError: On refusals of the Hub, and on a lost connection.
        CardError: When the Hub does not accept the card's metadata.
    """
    try:
        yield
    except ChatGPTError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        found = _cause(error)
        if found is None and _is_of_xet(error):
            without = " Where it has no Xet storage, set HF_HUB_DISABLE_XET=1." if "xet-" in str(error) else ""
            raise HubError(f"The transfer to or from the Hub ended: {error}.{without} {after}".rstrip()) from error
        if found is None:
            raise
        if isinstance(error, ValueError) and "Invalid metadata in README.md" in str(error):
            raise CardError(f"{error}\nThe card is README.md; `chatgpt-hf card` shows it.") from error
        raise HubError(_message(found, repo_id, revision, after)) from error


def _cause(error: BaseException) -> HTTPError | OfflineModeIsEnabled | None:
    """The failure of a request behind an error: threads and retries wrap it."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, (HTTPError, OfflineModeIsEnabled)):
            return current
        current = current.__cause__ or current.__context__
    return None


def _is_of_xet(error: Exception) -> bool:
    """Whether it may be of the Xet storage's client, which is not written in Python and raises Python's own errors."""
    return isinstance(error, (RuntimeError, ConnectionError, TimeoutError)) or type(error).__module__ == "hf_xet"


def _message(error: HTTPError | OfflineModeIsEnabled, repo_id: str, revision: str | None, after: str) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is not asked for anything: unset it."
    if not isinstance(error, HfHubHTTPError):
        return f"The connection to the Hub was lost ({error or type(error).__name__}). {after}".rstrip()
    said = error.server_message or ""
    status = error.response.status_code
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        where = "of HF_TOKEN " if os.environ.get("HF_TOKEN") else ""
        return f"The Hub does not accept the token {where}({said or 'it is wrong, was revoked, or has expired'}): log in with {_LOG_IN}."
    if isinstance(error, GatedRepoError):
        return f"{repo_id} is given only to those whom its owners let: ask on its page. {said}".rstrip()
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no revision {revision or 'main'}: name a branch, a tag or a commit of it."
    if isinstance(error, RepositoryNotFoundError):
        return f"There is no repository {repo_id} that this token may see: look at the name; for a private one log in with {_LOG_IN}."
    if status == 403:
        return f"The token may not do this with {repo_id} ({said or 'forbidden'}): take one with the right to write to it."
    if status == 412:
        return f"Somebody else has changed {repo_id} in the meantime, and nothing was written. Run the same command again."
    if isinstance(error, BadRequestError):
        return f"The Hub refuses {repo_id}: {said or error}"
    return f"The Hub answered {status} for {error.response.url}: {said or error}. {after}".rstrip()

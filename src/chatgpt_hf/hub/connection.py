"""The Hub's client, and its failures as errors that users can act on."""

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
    """Raises `ConfigError` if `repo_id` is not a valid name of a repository."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(
            f"{repo_id!r} is not a repository name: use NAMESPACE/NAME, like me/my-model. {error}"
        ) from error


def client(token: str | None, *, write: bool = False) -> HfApi:
    """Returns the Hub's client, which uses `HF_ENDPOINT` if it is set.

    Args:
        token: None for `HF_TOKEN`, or the token of `hf auth login`.
        write: Require a token, which writing needs.

    Raises:
        HubError: If `write` is set and there is no token.
    """
    if write and not (token or get_token()):
        raise HubError(f"Writing to the Hub needs a token: log in with {_LOG_IN}. The token needs write permission.")
    return HfApi(token=token, library_name="chatgpt_hf", library_version=__version__)


def check_access(repo_id: str, token: str | None) -> None:
    """Raises an error if a repository's name is invalid, or the token is missing or not accepted."""
    check_repo_id(repo_id)
    with hub_errors(repo_id):
        client(token, write=True).whoami()


@contextmanager
def hub_errors(repo_id: str, *, revision: str | None = None, after: str = "") -> Iterator[None]:
    """Converts the client's errors to errors of the package.

    Args:
        after: A sentence that the message for a lost connection ends with.

    Raises:
        HubError: If the Hub refuses a request, or the connection is lost.
        CardError: If the Hub does not accept the card's metadata.
    """
    try:
        yield
    except ChatGPTError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        found = _cause(error)
        if found is None and _is_of_xet(error):
            without = " If your Hub has no Xet storage, set HF_HUB_DISABLE_XET=1." if "xet-" in str(error) else ""
            raise HubError(f"The transfer to or from the Hub failed: {error}.{without} {after}".rstrip()) from error
        if found is None:
            raise
        if isinstance(error, ValueError) and "Invalid metadata in README.md" in str(error):
            raise CardError(f"{error}\nThe card is README.md; `chatgpt-hf card` shows it.") from error
        raise HubError(_message(found, repo_id, revision, after)) from error


def _cause(error: BaseException) -> HTTPError | OfflineModeIsEnabled | None:
    """Returns the failed request behind an error, because threads and retries wrap it, or None."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, (HTTPError, OfflineModeIsEnabled)):
            return current
        current = current.__cause__ or current.__context__
    return None


def _is_of_xet(error: Exception) -> bool:
    """True if the error may come from the Xet storage's client, which is native code and raises built-in errors."""
    return isinstance(error, (RuntimeError, ConnectionError, TimeoutError)) or type(error).__module__ == "hf_xet"


def _message(error: HTTPError | OfflineModeIsEnabled, repo_id: str, revision: str | None, after: str) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to reach the Hub."
    if not isinstance(error, HfHubHTTPError):
        return f"The connection to the Hub was lost ({error or type(error).__name__}). {after}".rstrip()
    said = error.server_message or ""
    status = error.response.status_code
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        where = "of HF_TOKEN " if os.environ.get("HF_TOKEN") else ""
        return f"The Hub does not accept the token {where}({said or 'it is wrong, was revoked, or has expired'}): log in with {_LOG_IN}."
    if isinstance(error, GatedRepoError):
        return f"{repo_id} is gated: request access on its page. {said}".rstrip()
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no revision {revision or 'main'}: name one of its branches, tags or commits."
    if isinstance(error, RepositoryNotFoundError):
        return f"There is no repository {repo_id} that you may see: check the name; for a private one log in with {_LOG_IN}."
    if status == 403:
        return (
            f"The token may not do this with {repo_id} ({said or 'forbidden'}): use one with write permission for it."
        )
    if status == 412:
        return f"Somebody else changed {repo_id} in the meantime; nothing was written. Run the same command again."
    if isinstance(error, BadRequestError):
        return f"The Hub rejects {repo_id}: {said or error}"
    return f"The Hub answered {status} for {error.response.url}: {said or error}. {after}".rstrip()

"""Talk with the Hugging Face Hub: one repository, one commit, carried on where it broke off."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlx_hybrid.errors import ConfigError, MlxHybridError
from mlx_hybrid.models.base import first_line, hub_endpoint, is_offline
from mlx_hybrid.publish.publication import Publication

ATTEMPTS = 4
FIRST_WAIT_SECONDS = 2.0
SILENCE = 0
PASSING = {
    SILENCE: "cannot be reached or hung up",
    **{status: f"has a fault ({status})" for status in (408, 500, 502, 503, 504)},
    409: "reports a conflict with another change (409)",
    412: "was changed by another commit (412)",
    429: "asks to slow down (429)",
}
"""What another attempt may get past, by status: overload, a fault, somebody else's commit in between."""
REFUSALS = {
    401: "the Hub does not know the token; `hf auth login` stores another",
    403: "the token may not write there; use one with write access to it, or another owner",
    404: "the Hub knows no such place for this token; check the owner's name",
    413: "the Hub finds a file too large",
}

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Pushed:
    """Where it is now."""

    repo: str
    url: str
    commit: str
    private: bool
    created: bool


def check_repo(repo: str) -> None:
    """Raise ConfigError for what is not OWNER/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"{repo}: {first_line(error)}.") from None
    if repo.count("/") != 1:
        raise ConfigError(f"{repo}: name the repository as OWNER/NAME.")


def find_token() -> str:
    """The token of `hf auth login`, or HF_TOKEN. Raises ConfigError where there is none, or the Hub is off."""
    from huggingface_hub import get_token

    if is_offline():
        raise ConfigError("Offline: nothing is pushed; leave out --offline (and HF_HUB_OFFLINE).")
    if token := get_token():
        return token
    raise ConfigError("No Hugging Face token here; `hf auth login` stores one, or set HF_TOKEN.")


def push(
    publication: Publication, repo: str, *, token: str, private: bool, message: str, tell: Tell
) -> Pushed:
    """Create the repository where it is missing, upload what it has not, and commit all files at once.

    Raises ConfigError where the Hub refuses, and MlxHybridError where it cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    def commit() -> Any:  # content that is there already makes none; the client takes no list twice
        files = publication.files.items()
        added = [
            CommitOperationAdd(name, data if isinstance(data, bytes) else str(data)) for name, data in files
        ]
        return api.create_commit(repo, added, commit_message=message)

    api = HfApi(endpoint=hub_endpoint(), token=token)
    created = attempt(lambda: ensure_repo(api, repo, private), repo, tell)
    info = attempt(commit, repo, tell)
    return Pushed(repo, f"{api.endpoint}/{repo}", info.oid, private, created)


def ensure_repo(api: Any, repo: str, private: bool) -> bool:
    """Whether the repository was made now. Raises ConfigError where it is there with the other visibility."""
    from huggingface_hub.errors import RepositoryNotFoundError

    api.whoami()  # a bad token is told from a missing repository, for which the Hub gives the same answer
    try:
        info = api.repo_info(repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=private, exist_ok=True)
        return True
    if private and not info.private:
        raise ConfigError(f"{repo}: exists and is public; --public pushes to it, or choose another name.")
    if info.private and not private:
        raise ConfigError(
            f"{repo}: exists and is private; leave out --public, or open it in its settings first."
        )
    return False


def attempt(action: Callable[[], Any], repo: str, tell: Tell) -> Any:
    """Do it, and again after a while where the fault may pass."""
    from huggingface_hub.errors import HTTPError

    for number in range(ATTEMPTS):
        try:
            return action()
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            status = status_of(error)
            if status is None:
                raise MlxHybridError(f"{repo}: the push failed ({first_line(error)}).") from error
            if status not in PASSING:
                raise ConfigError(f"{repo}: {REFUSALS.get(status, 'the Hub refuses')} ({status}).") from None
        if number < ATTEMPTS - 1:
            wait = FIRST_WAIT_SECONDS * 2**number
            tell(f"The Hub {PASSING[status]}; trying again in {wait:.0f} s.")
            time.sleep(wait)
    raise MlxHybridError(
        f"{repo}: the Hub {PASSING[status]}; what was uploaded stays there, and the same command goes on."
    )


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status behind an error, whatever the client wraps it in; SILENCE for a lost connection, or None."""
    from huggingface_hub.errors import HTTPError

    silent = None
    while error is not None:
        if status := getattr(getattr(error, "response", None), "status_code", None):
            return status
        silent = SILENCE if isinstance(error, HTTPError | ConnectionError | TimeoutError) else silent
        error = error.__cause__ or error.__context__
    return silent

"""Talk with the Hugging Face Hub: one repository, one commit, carried on where it broke off."""

import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from mlx_hybrid.errors import ConfigError, MlxHybridError
from mlx_hybrid.files import first_line, hub_endpoint, is_offline
from mlx_hybrid.publish.publication import Publication

WAITS = (2, 4, 8)
"""Seconds before each further attempt."""
Tell = Callable[[str], None]
SILENCE = 0
PASSING = (SILENCE, 408, 409, 412, 429, 500, 502, 503, 504)
"""What another attempt may get past, by status: overload, a fault, somebody else's commit in between."""
REFUSALS = {
    401: "the Hub does not know the token; `hf auth login` stores another",
    403: "the token may not write there; use one with write access to it, or another owner",
    404: "the Hub knows no such place for this token; check the owner's name",
    413: "the Hub finds a file too large",
}


def check_repo(repo: str) -> None:
    """Raise ConfigError for what is not OWNER/NAME."""
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except ValueError as error:
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
) -> dict[str, Any]:
    """Create the repository where it is missing, upload what it has not, and commit all files at once; `tell` hears of
    further attempts. Where it is now: repo, url, commit, private, created.

    Raises ConfigError where the Hub refuses, and MlxHybridError where it cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    def commit() -> Any:  # content that is there already makes none; the client takes no list twice
        added = [CommitOperationAdd(name, data) for name, data in publication.files.items()]
        return api.create_commit(repo, added, commit_message=message)

    api = HfApi(endpoint=hub_endpoint(), token=token)
    created = attempt(lambda: ensure_repo(api, repo, private), repo, tell)
    oid = attempt(commit, repo, tell).oid
    url = f"{api.endpoint}/{repo}"
    return {"repo": repo, "url": url, "commit": oid, "private": private, "created": created}


def ensure_repo(api: Any, repo: str, private: bool) -> bool:
    """Whether the repository was made now. Raises ConfigError where it is there with the other visibility."""
    from huggingface_hub.errors import RepositoryNotFoundError

    api.whoami()  # a bad token is told from a missing repository, for which the Hub gives the same answer
    try:
        info = api.repo_info(repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=private, exist_ok=True)
        return True
    if info.private and not private:
        raise ConfigError(f"{repo}: exists and is private; leave out --public, or open it in its settings.")
    if private and not info.private:
        raise ConfigError(f"{repo}: exists and is public; --public pushes to it, or choose another name.")
    return False


def attempt(action: Callable[[], Any], repo: str, tell: Tell) -> Any:
    """Do it, and again after a while where the fault may pass."""
    from huggingface_hub.errors import HTTPError

    for wait in (*WAITS, None):
        try:
            return action()
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            status = status_of(error)
            if status is None:
                raise MlxHybridError(f"{repo}: the push failed ({first_line(error)}).") from error
            if status not in PASSING:
                raise ConfigError(f"{repo}: {REFUSALS.get(status, 'the Hub refuses')} ({status}).") from None
        answer = (
            f"answers {status} ({HTTPStatus(status).phrase})" if status else "cannot be reached or hung up"
        )
        if wait:
            tell(f"The Hub {answer}; trying again in {wait} s.")
            time.sleep(wait)
    told = "what was uploaded stays there, and the same command goes on"
    raise MlxHybridError(f"{repo}: the Hub {answer}; {told}.")


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

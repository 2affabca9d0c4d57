"""What `push` publishes: allowed files and a card, nothing private, in one commit that is carried on where it broke."""

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from mlx_hybrid.errors import ConfigError, MlxHybridError
from mlx_hybrid.files import first_line, hub_endpoint, is_offline, read_header, read_json, sha256_of
from mlx_hybrid.publish.card import Facts, adapter_facts, is_made, model_card, run_facts
from mlx_hybrid.run import Run, list_runs

ALLOWED = (
    *("adapters.safetensors", "adapter_model.safetensors", "adapter_config.json", "export.json"),
    *("model.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja"),
    *("LICENSE", "LICENSE.txt", "NOTICE", "NOTICE.txt", "adapter.gguf", "model.gguf", "Modelfile"),
)
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
FOLDER = re.compile(r"lora|oft-\d+|base")
GENERAL = 4096  # bytes of a GGUF file that hold what it says of itself, before the vocabulary
VOCABULARY = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")
PRIVATE = {rb"/(?:Users|home)/[^/\s\"'\\]+/|[A-Za-z]:\\\\?Users\\": "the path of a home folder"}
PRIVATE |= {rb"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}": "something like an access token"}
WAITS = (2, 4, 8)  # seconds before each further attempt
Tell = Callable[[str], None]
SILENCE = 0  # in place of a status, of a connection that was lost
PASSING = (SILENCE, 408, 409, 412, 429, 500, 502, 503, 504)  # overload, a fault, another's commit in between
REFUSALS = {
    401: "the Hub does not know the token; `hf auth login` stores another",
    403: "the token may not write there; use one with write access to it, or another owner",
    404: "the Hub knows no such place for this token; check the owner's name",
    413: "the Hub finds a file too large",
}


@dataclass(frozen=True)
class Publication:
    """Files by their path in the repository, and the card: a person's own or made here. `left_out` stays here."""

    files: dict[str, Path | bytes]
    card: str
    card_is_own: bool
    left_out: tuple[str, ...]

    def sizes(self) -> dict[str, int]:
        files = self.files.items()
        return {n: len(data) if isinstance(data, bytes) else data.stat().st_size for n, data in files}


def plan(directory: Path, repo: str, *, run: Run | None = None) -> Publication:
    """What to publish of a run, an adapter, an export or a model. Raises ConfigError for what is none, or private."""
    if (directory / "run.json").is_file():
        facts = run_facts(run := Run(directory))
        files = {path.name: path for path in allowed(run.adapter)}
        files |= {f"evaluation/{path.name}": path for path in sorted(directory.glob("evaluation/*.json"))}
    else:
        files = {str(path.relative_to(directory)): path for path in allowed(directory)}
        facts = folder_facts(directory, files, run)
    card = directory / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    own = text.startswith("---") and not is_made(text)  # without a head it is the few lines an export leaves
    text = text if own else model_card(facts, repo)
    files |= {card.name: text.encode()}
    for name, source in files.items():
        refuse_private(name, source)
    others = {path for path in directory.rglob("*") if path.is_file()} - {*files.values(), card}
    return Publication(files, text, own, tuple(sorted(str(path.relative_to(directory)) for path in others)))


def allowed(directory: Path) -> Iterator[Path]:
    """Files that may be published: known names, at the top and in the folders that an export makes."""
    for path in sorted(directory.iterdir()):
        if path.is_dir() and not path.is_symlink() and FOLDER.fullmatch(path.name):
            yield from allowed(path)
        elif path.name in ALLOWED or SHARD.fullmatch(path.name):
            if path.is_symlink():
                raise ConfigError(f"{path}: is a link to somewhere else; put a copy in its place.")
            yield path


def folder_facts(directory: Path, files: dict[str, Path], run: Run | None) -> Facts:
    """Facts of a folder that is no run: from its export report, its adapter config, and the run it came from."""
    if not any(name.endswith((".safetensors", ".gguf")) for name in files):
        raise ConfigError(f"{directory}: holds no run, adapter, export or model to publish.")
    export = read_json(directory / "export.json") if "export.json" in files else {}
    form = "peft" if "adapter_model.safetensors" in files else "model"
    if run := run or find_origin(export.get("adapter", {})):
        facts = run_facts(run)
        facts.form = facts.form if "adapters.safetensors" in files else form
    elif "adapters.safetensors" in files and not export:
        facts = adapter_facts(directory, directory.name)
    else:
        facts = Facts(directory.name, form)
    return facts.take_export(export) if export else facts


def find_origin(adapter: dict) -> Run | None:
    """The run an exported adapter came from, when it is still here: same name, same weights."""
    for run in (run for run in list_runs() if run.name == adapter.get("name")):
        weights = run.adapter / "adapters.safetensors"
        return run if weights.is_file() and sha256_of(weights) == adapter.get("sha256") else None
    return None


def refuse_private(name: str, source: Path | bytes) -> None:
    """Raise ConfigError for a file that says where it was made, or holds a token; a vocabulary may hold any string."""
    data = source if isinstance(source, bytes) else b""
    if name.endswith(".safetensors"):
        metadata, shapes = read_header(source)
        data = json.dumps([metadata, list(shapes)], ensure_ascii=False).encode()
    elif name.endswith(".gguf"):
        with source.open("rb") as file:
            data = file.read(GENERAL)
    elif not data and source.name not in VOCABULARY:
        data = source.read_bytes()
    home = re.escape(str(Path.home()).rstrip("/").encode()) + b"/"
    own = {home: "the path of your home folder"} if home != b"/" else {}
    for pattern, what in (PRIVATE | own).items():
        if found := re.search(pattern, data):
            line = data.count(b"\n", 0, found.start()) + 1
            told = f"holds {what}, which would be published; take it out first."
            raise ConfigError(f"{name}, line {line}: {told}")


def check_repo(repo: str) -> None:
    """Raise ConfigError for what is not OWNER/NAME."""
    try:
        validate_repo_id(repo)
    except ValueError as error:
        raise ConfigError(f"{repo}: {first_line(error)}.") from None
    if repo.count("/") != 1:
        raise ConfigError(f"{repo}: name the repository as OWNER/NAME.")


def find_token() -> str:
    """The token of `hf auth login`, or HF_TOKEN. Raises ConfigError where there is none, or the Hub is off."""
    if is_offline():
        raise ConfigError("Offline: nothing is pushed; leave out --offline (and HF_HUB_OFFLINE).")
    if not (token := get_token()):
        raise ConfigError("No Hugging Face token here; `hf auth login` stores one, or set HF_TOKEN.")
    return token


def push(publication: Publication, repo: str, *, token: str, private: bool, message: str, tell: Tell) -> dict:
    """Create the repository where it is missing and commit all files at once; where it is now: repo, url, commit,
    private, created. Raises ConfigError where the Hub refuses, MlxHybridError where it cannot be reached."""

    def commit() -> Any:  # content that is there already makes none; the client takes no list twice
        added = [CommitOperationAdd(name, data) for name, data in publication.files.items()]
        return api.create_commit(repo, added, commit_message=message)

    api = HfApi(endpoint=hub_endpoint(), token=token)
    created = attempt(lambda: ensure_repo(api, repo, private), repo, tell)
    made = {"commit": attempt(commit, repo, tell).oid, "private": private, "created": created}
    return {"repo": repo, "url": f"{api.endpoint}/{repo}", **made}


def ensure_repo(api: Any, repo: str, private: bool) -> bool:
    """Whether the repository was made now. Raises ConfigError where it is there with the other visibility."""
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
    for wait in (*WAITS, None):
        try:
            return action()
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            if (status := status_of(error)) is None:
                raise MlxHybridError(f"{repo}: the push failed ({first_line(error)}).") from error
            if status not in PASSING:
                raise ConfigError(f"{repo}: {REFUSALS.get(status, 'the Hub refuses')} ({status}).") from None
        said = f"answers {status} ({HTTPStatus(status).phrase})" if status else "cannot be reached or hung up"
        if wait:
            tell(f"The Hub {said}; trying again in {wait} s.")
            time.sleep(wait)
    told = "what was uploaded stays there, and the same command goes on"
    raise MlxHybridError(f"{repo}: the Hub {said}; {told}.")


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status behind an error, whatever the client wraps it in; SILENCE for a lost connection, or None."""
    silent = None
    while error is not None:
        if status := getattr(getattr(error, "response", None), "status_code", None):
            return status
        silent = SILENCE if isinstance(error, HTTPError | ConnectionError | TimeoutError) else silent
        error = error.__cause__ or error.__context__
    return silent

"""What `push` would publish: files that are allowed, a card, and nothing that is private."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.files import read_header, read_json, sha256_of
from mlx_hybrid.publish.card import is_made, model_card
from mlx_hybrid.publish.facts import Facts, adapter_facts, run_facts
from mlx_hybrid.run import Run, list_runs

CARD = "README.md"
ALLOWED = (
    *("adapters.safetensors", "adapter_model.safetensors", "adapter_config.json", "export.json"),
    *("model.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja"),
    *("LICENSE", "LICENSE.txt", "NOTICE", "NOTICE.txt", "adapter.gguf", "model.gguf", "Modelfile"),
)
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
FOLDER = re.compile(r"lora|oft-\d+|base")
GENERAL = 4096
"""Bytes of a GGUF file that hold what it says of itself, before the vocabulary."""
VOCABULARY = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")
PRIVATE = {
    rb"/(?:Users|home)/[^/\s\"'\\]+/|[A-Za-z]:\\\\?Users\\": "the path of a home folder",
    rb"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}": "something like an access token",
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
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such folder.")
    if (directory / "run.json").is_file():
        facts = run_facts(run := Run(directory))
        files = {path.name: path for path in allowed(run.adapter)}
        results = sorted((directory / "evaluation").glob("*.json"))
        files |= {f"evaluation/{path.name}": path for path in results}
    else:
        files = {str(path.relative_to(directory)): path for path in allowed(directory)}
        facts = folder_facts(directory, files, run)
    card = directory / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    own = text.startswith("---") and not is_made(text)  # without a head it is the few lines an export leaves
    text = text if own else model_card(facts, repo)
    files |= {CARD: text.encode()}
    for name, source in files.items():
        refuse_private(name, source)
    others = {path for path in directory.rglob("*") if path.is_file()} - {*files.values(), card}
    left = sorted(str(path.relative_to(directory)) for path in others)
    return Publication(files, text, own, tuple(left))


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
    for run in list_runs():
        weights = run.adapter / "adapters.safetensors"
        if run.name == adapter.get("name") and weights.is_file():
            return run if sha256_of(weights) == adapter.get("sha256") else None
    return None


def refuse_private(name: str, source: Path | bytes) -> None:
    """Raise ConfigError for a file that says where it was made, or holds a token; a vocabulary may hold any string."""
    data = source if isinstance(source, bytes) else b""
    if name.endswith(".safetensors"):
        header = read_header(source)
        data = json.dumps([header.metadata, list(header.shapes)], ensure_ascii=False).encode()
    elif name.endswith(".gguf"):
        with source.open("rb") as file:
            data = file.read(GENERAL)
    elif not data and source.name not in VOCABULARY:
        data = source.read_bytes()
    home = re.escape(str(Path.home()).rstrip("/").encode())
    own = {home + b"/": "the path of your home folder"} if home else {}
    for pattern, what in (PRIVATE | own).items():
        if found := re.search(pattern, data):
            line = data.count(b"\n", 0, found.start()) + 1
            raise ConfigError(
                f"{name}, line {line}: holds {what}, which would be published; take it out first."
            )

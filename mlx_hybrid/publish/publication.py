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
    *("LICENSE", "LICENSE.txt", "NOTICE", "NOTICE.txt"),
)
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
FOLDER = re.compile(r"lora|oft-\d+|base")
VOCABULARY = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")
PRIVATE = (
    (re.compile(rb"/(?:Users|home)/[^/\s\"'\\]+/|[A-Za-z]:\\\\?Users\\"), "the path of a home folder"),
    (re.compile(rb"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}"), "something like an access token"),
)


@dataclass(frozen=True)
class Publication:
    """Files by their path in the repository; those named in `left_out` stay here."""

    files: dict[str, Path | bytes]
    card: str
    card_is_own: bool
    """The card was written by a person, not by mlx-hybrid."""
    left_out: tuple[str, ...]

    def sizes(self) -> dict[str, int]:
        return {
            name: len(source) if isinstance(source, bytes) else source.stat().st_size
            for name, source in self.files.items()
        }


def plan(directory: Path, repo: str, *, run: Run | None = None) -> Publication:
    """What to publish of a run, an adapter folder, an export or a model.

    Raises ConfigError for a folder that is none of them, for a file that is a link, and for one with a home path or a
    token in it.
    """
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such folder.")
    if (directory / "run.json").is_file():
        run = Run(directory)
        facts = run_facts(run)
        files = {path.name: path for path in allowed(run.adapter)}
        results = sorted((directory / "evaluation").glob("*.json"))
        files |= {f"evaluation/{path.name}": path for path in results}
    else:
        files = {str(path.relative_to(directory)): path for path in allowed(directory)}
        facts = folder_facts(directory, files, run)
    text, own = choose_card(directory, facts, repo)
    files |= {CARD: text.encode()}
    for name, source in files.items():
        refuse_private(name, source)
    others = {path for path in directory.rglob("*") if path.is_file()} - {*files.values(), directory / CARD}
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
    if not any(name.endswith(".safetensors") for name in files):
        raise ConfigError(f"{directory}: holds no run, adapter, export or model to publish.")
    export = read_json(directory / "export.json") if "export.json" in files else {}
    adapted = "adapters.safetensors" in files and not export
    if run := run or find_origin(export):
        facts = run_facts(run)
    elif adapted:
        facts = adapter_facts(directory, directory.name)
    else:
        facts = Facts(directory.name)
    if export:
        own = Facts.of_export(directory.name, export)
        facts.export, facts.form, facts.method = export, own.form, own.method or facts.method
        facts.template = own.template or facts.template
    elif not adapted:
        facts.form = "peft" if "adapter_model.safetensors" in files else "model"
    return facts


def find_origin(export: dict) -> Run | None:
    """The run an export came from, when it is still here: same name, same weights."""
    adapter = export.get("adapter", {})
    for run in list_runs():
        weights = run.adapter / "adapters.safetensors"
        if run.name == adapter.get("name") and weights.is_file():
            return run if sha256_of(weights) == adapter.get("sha256") else None
    return None


def choose_card(directory: Path, facts: Facts, repo: str) -> tuple[str, bool]:
    """A card that a person wrote or changed stays; any other is made from the facts. Without metadata at its head a
    README is no card: the few lines an export leaves."""
    path = directory / CARD
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        if text.startswith("---") and not is_made(text):
            return text, True
    return model_card(facts, repo), False


def refuse_private(name: str, source: Path | bytes) -> None:
    """Raise ConfigError for a file that says where it was made, or holds a token. Of weights the header is read; a
    vocabulary is the base's own and may hold any string."""
    if isinstance(source, bytes):
        data = source
    elif source.suffix == ".safetensors":
        header = read_header(source)
        data = json.dumps([header.metadata, list(header.shapes)], ensure_ascii=False).encode()
    else:
        data = b"" if source.name in VOCABULARY else source.read_bytes()
    home = re.escape(str(Path.home()).rstrip("/").encode())
    own = [(re.compile(home + b"/"), "the path of your home folder")] if home else []
    for pattern, what in (*PRIVATE, *own):
        if found := pattern.search(data):
            line = data.count(b"\n", 0, found.start()) + 1
            told = f"{name}, line {line}: holds {what}"
            raise ConfigError(f"{told}, which would be published; take it out first.")

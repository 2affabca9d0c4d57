"""ollama's `Modelfile` for an export: the base, the adapter, and the chat template in Go's language."""

import os
import re
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports.adapter import Source
from mlx_hybrid.exports.checks import Report
from mlx_hybrid.exports.gguf.adapter import ADAPTER
from mlx_hybrid.exports.weights import GENERATION
from mlx_hybrid.files import read_json, render, write_text
from mlx_hybrid.models.base import OLLAMA, read_tokenizer, with_template

S, U, A, V = ("\u2045system\u2046", "\u2045first\u2046", "\u2045answer\u2046", "\u2045second\u2046")
"""Turns that no template changes."""


def write_modelfile(report: Report, source: Source, folder: Path, directory: Path) -> None:
    """Write the Modelfile of `folder`, which is to become `directory`, and what runs the export in two programs."""
    tokenizer = with_template(read_tokenizer(source.name, source.base.folder), source.info.conversations)
    generation = source.base.folder / GENERATION
    settings = read_json(generation) if generation.is_file() else {}
    temperature = source.info.extra.get("temperature", settings.get("temperature"))
    own, base = next(folder.glob("*.gguf")), report.base["id"]
    place = f"path/to/{Path(base).name}.gguf"
    if base.startswith(OLLAMA):
        place = base.removeprefix(OLLAMA)
    elif report.base_folder:
        place = os.path.relpath(report.base_folder, folder)
    adapter = own.name == ADAPTER
    lines = [f"FROM {place}", f"ADAPTER ./{own.name}"] if adapter else [f"FROM ./{own.name}"]
    template = go_template(tokenizer) if tokenizer.has_chat_template else "{{ .Prompt }}"
    lines += [f'TEMPLATE """{template}"""'] if template is not None else []
    lines += [f'PARAMETER stop "{end}"' for end in tokenizer.end_markers]
    lines += [f"PARAMETER temperature {temperature}"] if temperature is not None else []
    write_text(folder / "Modelfile", "\n".join(lines) + "\n")
    if template is None:
        told = "Go's language cannot say this one, so ollama takes the base's own"
        report.notes.append(f"Modelfile has no TEMPLATE: {told}.")
    if adapter and not report.base_folder:
        told = "stands in Modelfile for the base's GGUF file"
        report.notes.append(f"{place} {told}: write where it is, or name it with --base-id.")
    name, made = re.sub(r"[^a-z0-9._-]+", "-", directory.name.lower()), quote(str(directory / own.name))
    create = f"ollama create {name} -f {quote(str(directory / 'Modelfile'))}"
    report.commands["ollama"] = f"{create} && ollama run {name}"
    loads = f"{report.base_folder or place} --lora {made}" if adapter else made
    report.commands["llama.cpp"] = f"llama-cli -m {loads}"


def go_template(tokenizer: Any) -> str | None:
    """The chat template in Go's language, from what it writes around the turns of a conversation; None where that
    depends on more than a turn's place: ollama then takes the template of the base's own file."""
    user, answer, second = (
        {"role": r, "content": c} for r, c in (("user", U), ("assistant", A), ("user", V))
    )
    begin = "".join(map(tokenizer.convert_ids_to_tokens, tokenizer.begun([])))  # the engine writes it itself
    try:
        opened = tokenizer.render([user, answer, second], opened=True).removeprefix(begin)
        head, between, turn, opening = pieces(opened, U, A, V)
        end = pieces(tokenizer.render([user, answer]), A)[1]
    except (ConfigError, ValueError):
        return None
    before, system, first = turn.removeprefix(end), None, ""
    if not turn.startswith(end) or not head.endswith(before):
        return None
    with suppress(ConfigError, ValueError):  # a template without a place for a system turn
        told = tokenizer.render([{"role": "system", "content": S}, user], opened=True).removeprefix(begin)
        start, middle, _ = pieces(told, S, U)
        if middle.endswith(before):
            system = start, middle.removesuffix(before)
        elif start == before:  # it stands in the first user turn
            first = middle
    turns = {"before": before, "first": first, "between": between, "opening": opening, "end": end}
    turns |= {"system": system, "default": head.removesuffix(before)}
    text = render(Path(__file__).with_name("template.go.jinja"), turns).removesuffix("\n")
    return None if '"""' in text else text


def pieces(text: str, *marks: str) -> list[str]:
    """The text between the marks, each of which stands in it once. Raises ValueError where one does not."""
    found = re.split(f"({'|'.join(marks)})", text)
    if found[1::2] != [*marks]:
        raise ValueError(text)
    return found[::2]

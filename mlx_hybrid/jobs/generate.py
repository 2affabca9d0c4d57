"""Answers to all prompts of a file, made side by side."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mlx_hybrid.chat.conversation import checked_messages
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.models.adapted import Pair
from mlx_hybrid.models.generate import Sampling, answers, room_for_answer, system_turn
from mlx_hybrid.records.lines import Fault, as_source, check_file, read_lines

TEXT = (".txt", ".md")
Prompt = tuple[str, str | list[dict]]  # where it stands, and the text to continue or the messages to answer


def read_prompts(path: Path, system: str | None, raw: bool) -> list[Prompt]:
    """Every prompt of a file, without an answer that it has already: a line of text (.txt, .md) each, or `prompt` or
    `messages` of a record. Raises ConfigError."""
    check_file(path)
    prompts: list[Prompt] = []
    for number, line in text_lines(path) if path.suffix.lower() in TEXT else read_lines(as_source(path)):
        place = f"{path}:{number}"
        if isinstance(line, Fault):
            raise ConfigError(f"{place}: {line.detail}.")
        asked = line if isinstance(line, str) else prompt_of(line, place)
        if isinstance(asked, list):
            asked = checked_messages(asked, f"{place}: ")
            asked = asked[:-1] if asked[-1]["role"] == "assistant" else asked
            if not asked or asked[-1]["role"] != "user":
                raise ConfigError(f"{place}: holds no question; the last message must be the user's.")
            asked = asked if asked[0]["role"] == "system" else [*system_turn(system), *asked]
        elif not raw:
            asked = [*system_turn(system), {"role": "user", "content": asked}]
        if raw is not isinstance(asked, str):
            raise ConfigError(f"{place}: --raw continues a text, and these are messages.")
        prompts.append((place, asked))
    if not prompts:
        raise ConfigError(f"{path}: holds no prompt.")
    return prompts


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error}).") from None
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def prompt_of(line: bytes, place: str) -> str | list:
    with suppress(ValueError, KeyError, AttributeError):
        row = json.loads(line)
        asked = row.get("messages") or row["prompt"]
        if isinstance(asked, list if row.get("messages") else str):
            return asked
    raise ConfigError(f"{place}: is no JSON object with a text as `prompt` or a list as `messages`.")


def answers_to(
    pair: Pair,
    prompts: list[Prompt],
    sampling: Sampling,
    base: bool = False,
    *,
    exact: bool,
    stopped: Callable[[], bool],
    tell: Callable[[str], None],
) -> Iterator[str]:
    """Lines of JSON in the order of the prompts, each as soon as those before it are there."""
    tokenizer, tokens, how = pair.tokenizer, [], []
    for place, prompt in prompts:
        try:
            tokens.append(tokenizer.continued(prompt) if isinstance(prompt, str) else tokenizer.ask(prompt))
            room = room_for_answer(len(tokens[-1]), pair.context, sampling.max_tokens, exact=exact)
        except (ConfigError, DataError) as error:
            raise ConfigError(f"{place}: {error}") from None
        how.append(replace(sampling, max_tokens=room))
    model, waiting, written, began = pair.base if base else pair.model, {}, 0, time.monotonic()
    for done, (number, pieces) in enumerate(answers(model, tokenizer, tokens, how, stopped=stopped), 1):
        waiting[number] = pieces
        left = (time.monotonic() - began) / done * (len(prompts) - done)
        tell(f"{done} of {len(prompts)} answers, {left:.0f} s left")
        while written in waiting:
            pieces, prompt = waiting.pop(written), prompts[written][1]
            facts = {"prompt" if isinstance(prompt, str) else "messages": prompt}
            facts |= {"text": "".join(piece.text for piece in pieces), "finish_reason": pieces[-1].finish}
            yield json.dumps(facts | {"answer_tokens": pieces[-1].count}, ensure_ascii=False)
            written += 1

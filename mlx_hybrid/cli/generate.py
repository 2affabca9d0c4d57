"""`generate`: answer one prompt."""

import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click
from click import argument, option

from mlx_hybrid.cli.commands import answer, tell
from mlx_hybrid.cli.options import base_model_option, sampling_options
from mlx_hybrid.errors import INTERRUPTED, ConfigError

if TYPE_CHECKING:
    from mlx_hybrid.models.pair import Pair

DEFAULT_TOKENS = 512


@click.command()
@argument("target", metavar="RUN|MODEL")
@argument("prompt", required=False, metavar="[PROMPT|-]")
@option("--max-tokens", type=int, help="Longest answer.  [default: 512, or what the context leaves]")
@sampling_options
@option("--system", help="System prompt.")
@option("--raw", is_flag=True, help="Continue the text, without the chat template.")
@option("--base", is_flag=True, help="Leave the adapter off.")
@base_model_option
@option("--json", "as_json", is_flag=True, help="Print the answer and its circumstances as JSON.")
def generate(
    target: str,
    prompt: str | None,
    system: str | None,
    raw: bool,
    base: bool,
    base_model: str | None,
    **how: Any,
) -> None:
    """Answer one prompt, from the argument or from standard input.

    RUN is a run's path or name, `last`, or an adapter's folder or Hub id; MODEL is a folder or a Hub id.

    \b
    Examples:
        mlx-hybrid generate last "Translate to Swahili: Where is the station?"
        mlx-hybrid generate last --temperature 0.7 --seed 1 < question.txt
        mlx-hybrid generate last --base --json "Name three rivers."
        mlx-hybrid generate mlx-community/Qwen3-0.6B-4bit --raw "Once upon a time"
    """
    from mlx_hybrid.chat.repl import interruptible, printed
    from mlx_hybrid.models.generate import Sampling, prompt_tokens, room_for_answer, stream

    if raw and system:
        raise ConfigError("--raw sends the text as it is, so --system has no place; put it into the prompt.")
    as_json, max_tokens = how.pop("as_json"), how.pop("max_tokens")
    most = DEFAULT_TOKENS if max_tokens is None else max_tokens
    asked = Sampling(max_tokens=most, **how).with_seed()
    text = read_prompt(prompt)
    pair = open_and_tell(target, base=base, base_name=base_model)
    tokens = prompt_tokens(pair.tokenizer, text, system=system, raw=raw)
    room = room_for_answer(len(tokens), pair.context, most)
    if room < (max_tokens or 0):
        left = f"the context of {pair.context:,} leaves {room} for the answer"
        raise ConfigError(f"--max-tokens: {max_tokens}, but {left}.")
    model = pair.base() if base else pair.model
    with interruptible() as stopped:
        pieces = stream(model, pair.tokenizer, tokens, replace(asked, max_tokens=room), stopped=stopped)
        pieces = list(pieces if as_json else printed(pieces))
    last = pieces[-1]
    if as_json:
        name, modules = (pair.base_name, 0) if base else (pair.name, pair.modules)
        facts = {"format": 1, "model": name, "adapted_modules": modules}
        facts |= {"text": "".join(piece.text for piece in pieces), "finish_reason": last.finish}
        facts |= {"prompt_tokens": len(tokens), "answer_tokens": last.count, "settings": asdict(asked)}
        answer(facts, as_json)
    if last.finish == "interrupted":
        raise SystemExit(INTERRUPTED)


def read_prompt(prompt: str | None) -> str:
    """The argument, or standard input for `-` and for none."""
    if prompt is None and sys.stdin.isatty():
        raise ConfigError("No prompt; give one as an argument, or pipe it in.")
    try:
        text = sys.stdin.read().rstrip("\n") if prompt in (None, "-") else prompt
        text.encode()  # bytes that are no UTF-8 come in as lone surrogates where the locale lets them
    except UnicodeError:
        raise ConfigError("The prompt is not UTF-8 text.") from None
    if not text.strip():
        raise ConfigError("The prompt is empty.")
    return text


def open_and_tell(
    target: str, *, base: bool = False, context: int | None = None, base_name: str | None = None
) -> "Pair":
    """Load, and say on stderr what is loaded."""
    from mlx_hybrid.models.pair import open_pair

    pair = open_pair(target, context=context, base_name=base_name)
    if base and not pair.adapted:
        raise ConfigError(f"{target} has no adapter, so --base changes nothing; leave it out.")
    told = f"{pair.base_name}: the base of {pair.name}, no adapter." if base else pair.describe()
    tell(told)
    return pair

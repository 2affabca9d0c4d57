"""`generate`: one prompt answered, or those of a file."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from mlx_hybrid.cli import options as shared
from mlx_hybrid.cli.options import LOADING, PATH, flag, option
from mlx_hybrid.cli.output import answer, tell
from mlx_hybrid.errors import INTERRUPTED, ConfigError

DEFAULT_TOKENS = 512
LONGEST_NAME = 1000  # of a file; longer prompts are prompts


@click.command()
@click.argument("target", metavar="RUN|MODEL")
@click.argument("prompt", required=False, metavar="[PROMPT|FILE|-]")
@option("--max-tokens", "Longest answer.  [default: 512, or what the context leaves]", type=int)
@shared.sampling_options
@option("--system", "System prompt.")
@flag("--raw", "Continue the text, without the chat template.")
@flag("--base", "Leave the adapter off.")
@shared.model_options
@option("-o --output", "New file for the answers to a file's prompts.", type=PATH, metavar="FILE")
@shared.json_option
def generate(target: str, prompt: str | None, output: Path | None, as_json: bool, **how: Any) -> None:
    """Answer one prompt, from the argument or from standard input, or all prompts of a file side by side.

    RUN is a run's path or name, `last`, or an adapter's folder or Hub id; MODEL is a folder or a Hub id. FILE is text
    with a prompt a line, or .jsonl with `prompt` or `messages`; its answers are lines of JSON, in its order.

    \b
    Examples:
        mlx-hybrid generate last "Translate to Swahili: Where is the station?"
        mlx-hybrid generate last --temperature 0.7 --seed 1 < question.txt
        mlx-hybrid generate last questions.txt -o answers.jsonl
        mlx-hybrid generate mlx-community/Qwen3-0.6B-4bit --raw "Once upon a time"
    """
    from mlx_hybrid.chat.repl import interruptible, printed
    from mlx_hybrid.jobs.generate import TEXT, answers_to, read_prompts
    from mlx_hybrid.models.generate import Sampling, prompt_tokens, room_for_answer, stream
    from mlx_hybrid.records.files import FILES

    exact, base = how["max_tokens"] is not None, how.pop("base")
    loading = {name: how.pop(name) for name in LOADING}
    asking = {name: how.pop(name) for name in ("system", "raw")}
    if all(asking.values()):
        raise ConfigError("--raw sends the text as it is, so --system has no place; put it into the prompt.")
    asked = Sampling(**how if exact else how | {"max_tokens": DEFAULT_TOKENS}).with_seed()
    if prompt and Path(prompt).suffix and len(prompt) < LONGEST_NAME and Path(prompt).is_file():
        prompts = read_prompts(Path(prompt), **asking)
        if output and output.exists():
            raise ConfigError(f"{output}: exists already; choose another name.")
        pair = open_and_tell(target, base=base, **loading)
        with interruptible() as stopped, click.open_file(output or "-", "x", encoding="utf-8") as out:
            way = {"exact": exact, "stopped": stopped, "tell": lambda text: tell(f"\r{text} ", nl=False)}
            for line in answers_to(pair, prompts, asked, base, **way):
                print(line, file=out, flush=True)
            tell("")
            raise SystemExit(INTERRUPTED if stopped() else 0)
    if prompt and len(prompt.split()) == 1 and prompt.lower().endswith((*FILES, *TEXT)):
        raise ConfigError(f"{prompt}: no such file.")
    if output:
        raise ConfigError("-o is for the answers to a file of prompts; the answer to one goes to stdout.")
    text = read_prompt(prompt)
    pair = open_and_tell(target, base=base, **loading)
    model, tokens = pair.base if base else pair.model, prompt_tokens(pair.tokenizer, text, **asking)
    room = room_for_answer(len(tokens), pair.context, asked.max_tokens, exact=exact)
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


def open_and_tell(target: str, *, base: bool = False, **how: Any) -> Any:
    """Load, as `open_pair` does, and say on stderr what is loaded."""
    from mlx_hybrid.models.adapted import open_pair

    pair = open_pair(target, **how)
    if base and not pair.adapted:
        raise ConfigError(f"{target} has no adapter, so --base changes nothing; leave it out.")
    tell(f"{pair.base_name}: the base of {pair.name}, no adapter." if base else pair.describe())
    return pair

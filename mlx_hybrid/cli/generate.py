"""`generate`, `chat` and `serve`: one prompt or those of a file answered, a talk, and an OpenAI-compatible API."""

import os
import signal
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from mlx_hybrid.cli import options as shared
from mlx_hybrid.cli.commands import answer, tell
from mlx_hybrid.cli.options import LOADING, PATH, SOME, flag, option
from mlx_hybrid.errors import INTERRUPTED, ConfigError

DEFAULT_TOKENS = 512
LONGEST_NAME = 1000  # of a file; longer prompts are prompts
KEY_VARIABLE = "MLX_HYBRID_API_KEY"
SHORTEST_KEY = 8


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
    from mlx_hybrid.jobs.generate import answers_to, read_prompts
    from mlx_hybrid.models.generate import Sampling, prompt_tokens, room_for_answer, stream

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
    if output:
        raise ConfigError("-o is for the answers to a file of prompts; the answer to one goes to stdout.")
    text = read_prompt(prompt)
    pair = open_and_tell(target, base=base, **loading)
    model, tokens = pair.base() if base else pair.model, prompt_tokens(pair.tokenizer, text, **asking)
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


@click.command()
@click.argument("target", metavar="RUN|MODEL")
@option("--system", "System prompt.", default="")
@option("--max-tokens", "Longest answer.", type=int, default=DEFAULT_TOKENS)
@shared.sampling_options
@shared.model_options
@option("--load saved", "Go on with a saved conversation.", type=PATH)
def chat(target: str, system: str, saved: Path | None, **how: Any) -> None:
    """Talk to a run or a model.

    In a terminal, /help tells the commands: /base puts the base's answer beside. Of a pipe each line is one turn.

    \b
    Examples:
        mlx-hybrid chat last --system "Answer in Swahili." --temperature 0.7
        printf 'Hello!\\nAnd in Hausa?\\n' | mlx-hybrid chat last
    """
    from mlx_hybrid.chat.conversation import Conversation
    from mlx_hybrid.chat.repl import Repl
    from mlx_hybrid.models.generate import Sampling

    loading = {name: how.pop(name) for name in LOADING}
    asked = Sampling(**how)
    conversation = Conversation(open_and_tell(target, **loading), asked, system)
    if saved:
        conversation.load(saved)
    Repl(conversation).run()


@click.command()
@click.argument("target", metavar="RUN|MODEL")
@option("--host", "Address to listen on.", default="127.0.0.1")
@option("--port", "0 takes a free one.", type=click.IntRange(0, 65535), default=8080)
@option("--api-key-file", f"File with the key.  [default: ${KEY_VARIABLE}]", type=PATH)
@option("--cors", "A web origin that may call; may be repeated.", multiple=True, metavar="ORIGIN")
@shared.model_options
@option("--max-tokens", "Where a request names none.", type=int, default=512)
@option("--max-body", "Longest request, in KiB.", type=SOME, default=1024)
@option("--active", "Answers made side by side.", type=SOME, default=16)
@option("--waiting", "Requests that may wait.", type=SOME, default=64)
def serve(target: str, host: str, port: int, api_key_file: Path | None, **how: Any) -> None:
    """Serve a run or a model over an OpenAI-compatible API, with a chat page at /.

    A run is served under two ids, its own name and its base's. Ctrl-C ends it.

    \b
    Examples:
        mlx-hybrid serve last
        MLX_HYBRID_API_KEY=… mlx-hybrid serve last --host 0.0.0.0 --port 8000
    """
    from mlx_hybrid.models.generate import Sampling
    from mlx_hybrid.serve.app import Server
    from mlx_hybrid.serve.engine import Engine
    from mlx_hybrid.serve.guard import Policy

    for origin in how["cors"]:
        if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
            raise ConfigError(f"--cors: {origin!r} is not one origin, as https://example.org is.")
    loading = {name: how.pop(name) for name in LOADING}
    asked, longest = Sampling(max_tokens=how.pop("max_tokens")), how.pop("max_body") << 10
    policy = Policy(host, read_key(api_key_file), how.pop("cors"), longest, asked)
    if not policy.local and not policy.api_key:
        way = f"--api-key-file, or ${KEY_VARIABLE}"
        raise ConfigError(f"--host {host} is open to others, so it needs a key: {way}.")
    pair = open_and_tell(target, **loading)
    if not pair.tokenizer.has_chat_template:
        tell("The model has no chat template: only /v1/completions will answer.")
    else:
        pair.tokenizer.ask([{"role": "user", "content": "?"}])
    engine = Engine(pair, **how)
    server = Server(engine, policy, port, log=tell)
    tell(f"Models: {', '.join(engine.models)}. Page: {server.url}/")
    click.echo(f"{server.url}/v1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    listener = threading.Thread(target=server.run, daemon=True)
    listener.start()
    try:
        engine.run()
    except KeyboardInterrupt:
        tell("Stopped.")
    finally:
        engine.close()
        server.close()
        listener.join()


def read_key(path: Path | None) -> str:
    """The API key, from a file or the environment; empty for none. Raises ConfigError for one that is too short."""
    try:
        key = path.read_text(encoding="utf-8").strip() if path else os.environ.get(KEY_VARIABLE, "").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file: {path} cannot be read ({error}).") from None
    if (key or path) and not (len(key) >= SHORTEST_KEY and key.isascii() and key.isprintable()):
        raise ConfigError(f"The API key must have at least {SHORTEST_KEY} printable ASCII characters.")
    return key

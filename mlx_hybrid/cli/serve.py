"""`serve`: an OpenAI-compatible API and a chat page, on this machine."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import click

from mlx_hybrid.cli import options as shared
from mlx_hybrid.cli.generate import DEFAULT_TOKENS, open_and_tell
from mlx_hybrid.cli.options import LOADING, PATH, SOME, option
from mlx_hybrid.cli.output import tell
from mlx_hybrid.errors import ConfigError

KEY_VARIABLE = "MLX_HYBRID_API_KEY"
SHORTEST_KEY = 8


@click.command()
@click.argument("target", metavar="RUN|MODEL")
@option("--host", "Address to listen on.", default="127.0.0.1")
@option("--port", "0 takes a free one.", type=click.IntRange(0, 65535), default=8080)
@option("--api-key-file", f"File with the key.  [default: ${KEY_VARIABLE}]", type=PATH)
@option("--cors", "A web origin that may call; may be repeated.", multiple=True, metavar="ORIGIN")
@shared.model_options
@option("--max-tokens", "Where a request names none.", type=int, default=DEFAULT_TOKENS)
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
    from mlx_hybrid.models.sampling import Sampling
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
    listener = threading.Thread(target=server.run, daemon=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        listener.start()
        click.echo(f"{server.url}/v1")
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

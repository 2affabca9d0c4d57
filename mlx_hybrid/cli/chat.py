"""`chat`: talk to a run or a model."""

from pathlib import Path
from typing import Any

import click

from mlx_hybrid.cli import options as shared
from mlx_hybrid.cli.generate import DEFAULT_TOKENS, open_and_tell
from mlx_hybrid.cli.options import LOADING, PATH, option


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
    from mlx_hybrid.models.sampling import Sampling

    loading = {name: how.pop(name) for name in LOADING}
    conversation = Conversation(open_and_tell(target, **loading), Sampling(**how), system)
    if saved:
        conversation.load(saved)
    Repl(conversation).run()

"""`chat`: talk to a run or a model."""

from pathlib import Path
from typing import Any

import click
from click import argument, option

from mlx_hybrid.cli.generate import DEFAULT_TOKENS, open_and_tell
from mlx_hybrid.cli.options import PATH, base_model_option, context_option, sampling_options, template_option


@click.command()
@argument("target", metavar="RUN|MODEL")
@option("--system", default="", help="System prompt.")
@option("--max-tokens", type=int, default=DEFAULT_TOKENS, show_default=True, help="Longest answer.")
@sampling_options
@context_option
@base_model_option
@template_option
@option("--load", "saved", type=PATH, help="Go on with a saved conversation.")
def chat(
    target: str,
    system: str,
    context: int | None,
    base_model: str | None,
    template: str | None,
    saved: Path | None,
    **sampling: Any,
) -> None:
    """Talk to a run or a model.

    In a terminal, /help tells the commands: /base puts the base's answer beside. Through a pipe, each line is one
    turn and only answers are printed.

    \b
    Examples:
        mlx-hybrid chat last
        mlx-hybrid chat last --system "Answer in Swahili." --temperature 0.7
        printf 'Hello!\\nAnd in Hausa?\\n' | mlx-hybrid chat last
    """
    from mlx_hybrid.chat.conversation import Conversation
    from mlx_hybrid.chat.repl import Repl
    from mlx_hybrid.models.generate import Sampling

    asked = Sampling(**sampling)
    pair = open_and_tell(target, context=context, base_name=base_model, template=template)
    conversation = Conversation(pair, asked, system)
    if saved:
        conversation.load(saved)
    Repl(conversation).run()

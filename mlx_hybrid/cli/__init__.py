"""The command line. Command `x` stands in `cli/x.py`, which is imported when it is called: it parses, calls, prints."""

import importlib
import keyword
import os
import sys

import click

from mlx_hybrid import __version__
from mlx_hybrid.errors import INTERRUPTED, ConfigError, MlxHybridError, nearest

COMMANDS = {
    "finetune": "Govern, train and evaluate: the whole job.",
    "estimate": "Say what memory a run needs, before loading a weight.",
    "govern": "Check raw records; keep, flag or reject each with a reason.",
    "rules": "List the rules of governance: what each catches, and how much good text it takes.",
    "rescue": "Bring records that a rule set aside back.",
    "records": "Show records as the model will see them, the trained tokens marked.",
    "task": "Make a benchmark into records to train on and to measure with.",
    "evaluate": "Measure a run beside its base, or a model, with intervals.",
    "compare": "Train several methods alike and compare them over seeds.",
    "report": "Make one page of a run or a comparison.",
    "chat": "Talk to a run or a model.",
    "generate": "Answer one prompt.",
    "serve": "Serve a run over an OpenAI-compatible API on this machine.",
    "export": "Take an adapter to PEFT, a merged model, or stock mlx-lm.",
    "import": "Bring a PEFT adapter in.",
    "fuse": "Merge an adapter into its base.",
    "push": "Publish a folder on the Hugging Face Hub, after asking.",
    "runs": "List runs, or show one.",
    "recipes": "List the recipes, or show one.",
    "doctor": "Say what this machine offers and what is installed.",
}

ON_RANKS = ("finetune", "doctor")  # what mlx.launch may start several of
EVERYWHERE = ("--debug", "--offline")


class Commands(click.Group):
    """A group that knows its commands' names and one-line helps without importing them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take --debug and --offline wherever they stand before a `--`."""
        end = args.index("--") if "--" in args else len(args)
        everywhere = [a for a in args[:end] if a in EVERYWHERE]
        return super().parse_args(
            ctx, everywhere + [a for a in args[:end] if a not in EVERYWHERE] + args[end:]
        )

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = f"{name}_" if keyword.iskeyword(name) else name
        return getattr(importlib.import_module(f"mlx_hybrid.cli.{module}"), module)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(f'No command "{args[0]}"; {nearest(args[0], COMMANDS)}')
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Stopped; what was written before is whole.", err=True)
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:  # the reader of a pipe went away
            sys.stderr.close()
            ctx.exit(1)
        except (MlxHybridError, OSError) as error:  # OSError: a full disk, a folder that went away
            if ctx.params.get("debug"):
                raise
            where = f"{error.filename}: " if getattr(error, "filename", None) else ""
            told = error if isinstance(error, MlxHybridError) else f"{where}{error.strerror or error}."
            click.echo(f"Error: {told}", err=True)
            ctx.exit(getattr(error, "exit_code", 1))


def check_alone(command: str | None) -> None:
    """Refuse to run a command once for every rank that a launcher starts, unless it is made for that."""
    launchers = {"MLX_RANK": "mlx.launch", "OMPI_COMM_WORLD_RANK": "mpirun"}
    found = [launcher for name, launcher in launchers.items() if name in os.environ]
    if found and command not in ON_RANKS:
        raise ConfigError(f"{command} runs in one process; leave out {found[0]}, which is for finetune.")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mlx-hybrid")
@click.option("--offline", is_flag=True, help="Use nothing but what is on this machine.")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
def main(offline: bool, debug: bool) -> None:
    """Fine-tune multilingual language models on your own machine.

    Nothing leaves it, except what you push and what you ask to be downloaded.

    \b
    Examples:
        mlx-hybrid finetune
        mlx-hybrid finetune --model mlx-community/Qwen3-0.6B-4bit --data my-records.jsonl
        mlx-hybrid chat last
    """
    check_alone(click.get_current_context().invoked_subcommand)
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from mlx_hybrid.models.blas import prefer_openblas

    prefer_openblas()

"""The command line. Command `x` stands in `cli/x.py`, which is imported when it is called: it parses, calls, prints."""

import importlib
import keyword
import os
import sys

import click

from mlx_hybrid import __version__
from mlx_hybrid.errors import INTERRUPTED, ConfigError, MlxHybridError, nearest

COMMANDS = (
    *("finetune", "estimate", "govern", "rules", "rescue", "records", "task", "evaluate", "predict"),
    *(
        "compare",
        "report",
        "chat",
        "generate",
        "serve",
        "export",
        "import",
        "fuse",
        "push",
        "runs",
        "recipes",
    ),
    *("settings", "doctor"),
)

COMPUTE = ("finetune", "evaluate", "compare", "chat", "generate", "serve")
ON_RANKS = ("finetune", "doctor")  # what mlx.launch may start several of
EVERYWHERE = ("--debug", "--offline")


class Commands(click.Group):
    """A group that knows its commands' names without importing them."""

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
            formatter.write_dl(
                [(name, self.get_command(ctx, name).help.split("\n\n")[0]) for name in COMMANDS]
            )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(f'No command "{args[0]}"; {nearest(args[0], COMMANDS)}')
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            raise click.UsageError(named_here(error), error.ctx) from None
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


def named_here(error: click.NoSuchOption) -> str:
    """What is wrong with an option that a command does not have: what it is called here, or where to look."""
    from mlx_hybrid.config.aliases import ALIASES, FLAGS
    from mlx_hybrid.config.explain import meant

    told = f"No such option: {error.option_name}"
    flags = {p.name.replace("__", "."): p.opts[-1] for p in error.ctx.command.params}
    word = error.option_name.strip("-").replace("-", "_").lower()
    key = meant(word) if "overrides" in flags else None
    if word in FLAGS and FLAGS[word] in flags.values():
        return f"{told}; did you mean {FLAGS[word]}?"
    if key and (word in ALIASES or not error.possibilities):
        return f"{told}; did you mean {flags.get(key) or f'--set {key}=VALUE'}?"
    if error.possibilities:
        return f"{told}; did you mean {' or '.join(sorted(error.possibilities))}?"
    return f"{told}; `mlx-hybrid settings` lists what --set takes." if "overrides" in flags else f"{told}."


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
    command = click.get_current_context().invoked_subcommand
    check_alone(command)
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from mlx_hybrid.models.blas import prefer_openblas, slow_products

    first = os.environ.get("MLX_RANK", "0") == "0"
    if not prefer_openblas() and first and command in COMPUTE and (told := slow_products()):
        click.echo(told, err=True)

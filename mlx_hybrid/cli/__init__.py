"""The command line. Command `x` stands in `cli/x.py`, which is imported when it is called: it parses, calls, prints."""

import importlib
import os

import click

from mlx_hybrid import __version__
from mlx_hybrid.errors import INTERRUPTED, ConfigError, MlxHybridError, nearest
from mlx_hybrid.models.blas import prefer_openblas, slow_products

GROUPS = (
    "finetune estimate govern rules rescue records task",
    "evaluate predict compare report",
    "chat generate serve",
    "export import fuse push",
    "runs recipes settings doctor",
)
COMMANDS = [name for group in GROUPS for name in group.split()]
COMPUTE = ("finetune", "evaluate", "compare", "chat", "generate", "serve")
LAUNCHERS = {"MLX_RANK": "mlx.launch", "OMPI_COMM_WORLD_RANK": "mpirun"}


class Commands(click.Group):
    """A group that knows its commands' names without importing them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take --debug and --offline wherever they stand before a `--`, and keep what follows the command's name."""
        end = args.index("--") if "--" in args else len(args)
        everywhere_first = sorted(args[:end], key=lambda word: word not in ("--debug", "--offline"))
        ctx.obj = super().parse_args(ctx, [*everywhere_first, *args[end:]])
        return ctx.obj

    def list_commands(self, ctx: click.Context) -> list[str]:
        return COMMANDS

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        if name not in COMMANDS:
            ctx.fail(f'No command "{name}"; {nearest(name, COMMANDS)}')
        name = "import_" if name == "import" else name  # a word that Python keeps
        return getattr(importlib.import_module(f"mlx_hybrid.cli.{name}"), name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, self.get_command(ctx, name).help.split("\n\n")[0]) for name in COMMANDS]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            raise click.UsageError(named_here(error), error.ctx) from None
        except KeyboardInterrupt:
            click.echo("Stopped; what was written before is whole.", err=True)
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:  # the reader of a pipe went away: click ends in silence
            raise
        except (MlxHybridError, OSError) as error:  # OSError: a full disk, a folder that went away
            if ctx.params.get("debug"):
                raise
            where = f"{error.filename}: " if getattr(error, "filename", None) else ""
            told = error if isinstance(error, MlxHybridError) else f"{where}{error.strerror or error}."
            click.echo(f"Error: {told}", err=True)
            ctx.exit(getattr(error, "exit_code", 1))


def named_here(error: click.NoSuchOption) -> str:
    """What is wrong with an option that a command does not have: what it is called here, or where to look."""
    from mlx_hybrid.config.explain import meant
    from mlx_hybrid.config.formats import ALIASES, FLAGS

    flags = {p.name.replace("__", "."): p.opts[-1] for p in error.ctx.command.params}
    word, near = error.option_name.strip("-").replace("-", "_").lower(), sorted(error.possibilities or ())
    key = meant(word) if "overrides" in flags else None
    if FLAGS.get(word) in flags.values():
        near = [FLAGS[word]]
    elif key and (word in ALIASES or word == key.rpartition(".")[2] or not near):
        near = [flags.get(key) or f"--set {key}=VALUE"]
    end = "; `mlx-hybrid settings` lists what --set takes." if "overrides" in flags else "."
    return f"No such option: {error.option_name}" + (f"; did you mean {' or '.join(near)}?" if near else end)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mlx-hybrid")
@click.option("--offline", is_flag=True, help="Use nothing but what is on this machine.")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
@click.pass_context
def main(ctx: click.Context, offline: bool, debug: bool) -> None:
    """Fine-tune multilingual language models on your own machine.

    Nothing leaves it, except what you push and what you ask to be downloaded.

    \b
    Examples:
        mlx-hybrid finetune
        mlx-hybrid finetune --model mlx-community/Qwen3-0.6B-4bit --data my-records.jsonl
        mlx-hybrid chat last
    """
    command = ctx.invoked_subcommand
    launched = [launcher for name, launcher in LAUNCHERS.items() if name in os.environ]
    if launched and command not in ("finetune", "doctor"):
        raise ConfigError(f"{command} runs in one process; leave out {launched[0]}, which is for finetune.")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    first = os.environ.get("MLX_RANK", "0") == "0"
    if not prefer_openblas() and first and command in COMPUTE and (told := slow_products()):
        click.echo(told, err=True)

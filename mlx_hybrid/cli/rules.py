"""`rules`: what each rule of governance catches."""

import json

import click

from mlx_hybrid.cli.commands import command
from mlx_hybrid.errors import ConfigError, nearest


@click.command()
@click.argument("names", nargs=-1, metavar="[RULE]...")
@click.option("--json", "as_json", is_flag=True, help="Print the rules as JSON.")
def rules(names: tuple[str, ...], as_json: bool) -> None:
    """List the rules of governance: what each catches, an example, its limit, and how much good text it takes.

    \b
    Examples:
        mlx-hybrid rules
        mlx-hybrid rules menu long_token
        mlx-hybrid govern raw.jsonl -o clean --rule menu=off --rule long_token.limit=80
    """
    from mlx_hybrid.governance.rules import RULES

    if unknown := [name for name in names if name not in RULES]:
        raise ConfigError(f'unknown rule "{unknown[0]}"; {nearest(unknown[0], RULES)}')
    shown = [RULES[name] for name in names or RULES]
    if as_json:
        click.echo(json.dumps([rule._asdict() for rule in shown], ensure_ascii=False))
        return
    for rule in shown:
        limit = f"limit {rule.limit:g} ({rule.counts}); " if rule.limit is not None else ""
        rate = "not measured" if rule.false_rejects is None else f"{rule.false_rejects:.2%} of good records"
        click.echo(f"{rule.name}  {rule.stage}, {'rejects' if rule.rejects else 'flags'}")
        click.echo(f"    catches {rule.catches}{f', as: {rule.example}' if rule.example else ''}")
        click.echo(f"    {limit}{f'takes {rate}' if rule.rejects else 'takes nothing'}")
    click.echo(command("govern", "raw.jsonl", "-o", "clean", "--rule", f"{shown[0].name}=off"))

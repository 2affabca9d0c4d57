"""`rules`: what each rule of governance catches."""

import click

from mlx_hybrid.cli import options as shared
from mlx_hybrid.cli.output import answer, command
from mlx_hybrid.errors import check_known


@click.command()
@click.argument("names", nargs=-1, metavar="[RULE]...")
@shared.json_option
def rules(names: tuple[str, ...], as_json: bool) -> None:
    """List the rules of governance: what each catches, an example, its limit, and how much good text it takes.

    \b
    Examples:
        mlx-hybrid rules menu long_token
        mlx-hybrid govern raw.jsonl -o clean --rule menu=off --rule long_token.limit=80
    """
    from mlx_hybrid.governance.rules import RULES

    for name in names:
        check_known(name, RULES, "unknown rule")
    shown = [RULES[name] for name in names or RULES]
    lines = []
    for rule in shown:
        limit = f"limit {rule.limit:g} ({rule.counts}); " if rule.limit is not None else ""
        rate = "not measured" if rule.false_rejects is None else f"{rule.false_rejects:.2%} of good records"
        lines.append(f"{rule.name}  {rule.stage}, {'rejects' if rule.rejects else 'flags'}")
        lines.append(f"    catches {rule.catches}{f', as: {rule.example}' if rule.example else ''}")
        lines.append(f"    {limit}{f'takes {rate}' if rule.rejects else 'takes nothing'}")
    then = command("govern", "raw.jsonl", "-o", "clean", "--rule", f"{shown[0].name}=off")
    answer([rule._asdict() for rule in shown], as_json, *lines, then)

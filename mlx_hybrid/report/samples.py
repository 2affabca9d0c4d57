"""The answers of base and adapter to a few prompts, for a terminal and for pages."""

from collections.abc import Iterator

from mlx_hybrid.report.page import Section
from mlx_hybrid.report.tables import Table
from mlx_hybrid.run import Run

SHOWN = 300  # letters of a prompt or an answer


def plain_samples(rows: list[dict]) -> str:
    """Each prompt with both answers beneath it."""
    told = (
        f"{row['kind']}: {shown(row['prompt'])}\n  base     {shown(row['base'])}\n  adapter  {shown(row['adapted'])}"
        for row in rows
    )
    return "\n".join(["Answers, base beside adapter:", *told])


def sample_section(run: Run) -> Iterator[Section]:
    """A section of the run's page, where there is something to show."""
    rows = [(shown(r["prompt"]), shown(r["base"]), shown(r["adapted"])) for r in run.samples()]
    if rows:
        note = "The likeliest token each time, at most 48; held-out records, then general prompts or yours."
        yield "Answers", [Table("Base beside adapter", ("prompt", "base", "adapter"), rows, note, words=True)]


def shown(text: str) -> str:
    """One line that is safe to print."""
    line = "".join(letter for letter in " ".join(text.split()) if letter.isprintable()) or "(nothing)"
    return line if len(line) <= SHOWN else f"{line[:SHOWN]} …"

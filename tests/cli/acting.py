"""Settings on the command line, files of lines, and what a command says."""

import json
from pathlib import Path

from mlx_hybrid.config import load_config
from mlx_hybrid.config.idle import idle_settings
from mlx_hybrid.evaluation.results import Results, Row


def sets(*settings: str) -> list[str]:
    """Each `key=value` as an option."""
    return [word for setting in settings for word in ("--set", setting)]


def acting(words: list[str], method: str) -> list[str]:
    """The `--set key=value` pairs among `words` that do something under `method`; others would be refused."""
    idle = idle_settings(load_config(None, (), {"method": method}))
    return sets(*(word for word in words[1::2] if word.partition("=")[0] not in idle))


def plain(words: list[str]) -> list[str]:
    """The `--set key=value` pairs among `words` that leave the adapter alone."""
    return sets(*(word for word in words[1::2] if not word.startswith("adapter.")))


def refused(done, code: int, *words: str) -> None:
    """Check that a command ended with `code` and said the words, in a sentence."""
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(source: Path | str) -> list[dict]:
    """The rows of a file of JSON lines, or of what was printed."""
    text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
    return [json.loads(line) for line in text.splitlines()]


def losses_of(run: Path) -> list[float]:
    """The reported training losses of a run."""
    key = "loss_nats_per_token"
    return [row[key] for row in rows_of(run / "metrics.jsonl") if key in row]


def printed(result) -> Results:
    """What `--json` printed, as it would be read from a file."""
    tree = json.loads(result.stdout)
    rows = tuple(Row(**row) for row in tree.pop("rows"))
    return Results(tree, rows)

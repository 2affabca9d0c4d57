"""Quality rules on clean text and planted faults."""

import base64
import html
import random
from collections import Counter

from governance_tables.text import flores, show
from mlx_hybrid.governance.checks.characters import Batch
from mlx_hybrid.governance.checks.material import made_of
from mlx_hybrid.governance.checks.quality import Turn, check_quality, check_unicode
from mlx_hybrid.governance.rules import in_force


def faults(text: str, rng: random.Random) -> dict[str, str]:
    """The text with one fault of each kind."""
    letters = list(text)
    place = rng.randrange(len(text))
    return {
        "replacement": text[:place] + "\ufffd" + text[place:],
        "control": text[:place] + "\x00" + text[place:],
        "surrogate": text[:place] + "\ud83d" + text[place:],
        "repetition": (text[:30] + " ") * 12,
        "char run": text[:place] + rng.choice([c for c in letters if c.isalpha()]) * 50 + text[place:],
        "symbols": "".join(
            rng.choice("!@#$%^&*()[]{}<>/\\|~+=") if rng.random() < 0.6 else c for c in letters
        ),
        "markup": f'<div class="a"><p>{text}</p></div>&nbsp;' + html.escape("<br>"),
        "digits": " ".join(str(rng.randrange(10**6)) for _ in range(12)),
        "base64": base64.b64encode(text.encode()).decode(),
        "latin-1": text.encode().decode("latin-1"),
        "cp1252": text.encode().decode("cp1252", "ignore"),
        "cp1251": text.encode().decode("cp1251", "ignore"),
        "gbk": text.encode().decode("gbk", "ignore"),
        "mac-roman": text.encode().decode("mac-roman"),
    }


def quality() -> None:
    """False rejects on clean text by language, and how many planted faults of each kind are caught."""
    rng = random.Random(2)
    rows, caught, total = [], Counter(), Counter()
    for code, lines in flores().items():
        wrong = [i for i, found in enumerate(broken(lines)) if found]
        real = [i for i in wrong if "Ã" in lines[i] or "â€" in lines[i]]
        rows.append([code, len(lines), len(wrong), len(real)])
        planted = [
            (kind, text) for line in lines[:200] for kind, text in faults(line, rng).items() if text != line
        ]
        for (kind, _), found in zip(planted, broken([text for _, text in planted])):
            total[kind] += 1
            caught[kind] += bool(found)
    rows.append(["all", *(sum(row[column] for row in rows) for column in (1, 2, 3))])
    heads = ["language", "lines", "rejected", "of these really mojibake"]
    show("Quality, rejected lines of FLORES dev", heads, rows)
    rows = [[kind, count, f"{caught[kind] / count:.2%}"] for kind, count in total.items()]
    show("Quality, planted faults", ["fault", "planted", "caught"], rows)


def broken(lines: list[str]) -> list[bool]:
    turns = [Turn(line, made_of(line)) for line in lines]
    return [bool(a or b) for a, b in zip(check_unicode(Batch(lines)), check_quality(turns, in_force({})))]

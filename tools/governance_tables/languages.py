"""Language identification and the declared-language rule."""

import random
import time
from collections import Counter

from governance_tables.text import VARIANTS, flores, show
from mlx_hybrid.governance.checks.characters import Batch, letters_only
from mlx_hybrid.governance.checks.engines import load_engine
from mlx_hybrid.governance.checks.language import check_languages
from mlx_hybrid.records.languages import parse_language, relatives_of


def language() -> None:
    """Accuracy, false rejects and caught swaps of the declared-language rule, by language and engine."""
    texts = flores()
    for name in ("py3langid", "fasttext:lid.176"):
        engine = load_engine(name)
        rng = random.Random(0)
        rows, totals = [], Counter()
        others = [code for code in texts if code not in VARIANTS]
        for code, lines in texts.items():
            declared = parse_language(code)
            started = time.process_time()
            best = engine.predict(letters_only(Batch(lines))).argmax(1)
            found = [engine.codes[i] for i in best]
            seconds = time.process_time() - started
            exact = sum(top == declared.code for top in found) / len(lines)
            related = sum(top in relatives_of(declared.code) for top in found) / len(lines)
            verdicts = check_languages(lines, [code] * len(lines), engine)
            wrong = sum(verdict.reject is not None for verdict in verdicts)
            wrong_ones = [c for c in others if parse_language(c).code != declared.code]
            swaps = [rng.choice(wrong_ones) for _ in lines[::10]]
            swapped = [texts[other][i] for i, other in zip(range(0, len(lines), 10), swaps)]
            verdicts = check_languages(swapped, [code] * len(swapped), engine)
            caught = sum(verdict.reject is not None for verdict in verdicts)
            shares = f"{wrong / len(lines):.2%}", f"{caught}/{len(swapped)}"
            rows.append([code, exact, related, *shares, int(len(lines) / seconds)])
            if code not in VARIANTS:
                totals.update(exact=exact, related=related)
            if code != "arb_Latn":
                totals.update(wrong=wrong, lines=len(lines), caught=caught, swapped=len(swapped))
        shares = f"{totals['wrong'] / totals['lines']:.3%}", f"{totals['caught'] / totals['swapped']:.2%}"
        rows.append(["all", totals["exact"] / 19, totals["related"] / 19, *shares, ""])
        heads = ["language", "accuracy", "with relatives", "false rejects", "swaps caught", "texts/s"]
        left_out = "`all` leaves arb_Latn out of rejects, variants out of accuracy"
        show(f"Language, {name}: FLORES dev; {left_out}", heads, rows)

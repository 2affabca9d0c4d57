"""Overlap with evaluation texts, and translations that are none."""

import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from governance_tables.planted import vary
from governance_tables.text import DATA, judged, rejected, sentences, show
from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.records.record import Record


def overlap() -> None:
    """Recall on planted leaks of evaluation texts, and what else is removed."""
    rng = random.Random(4)
    pool = sentences(81_500, seed=5)
    held, train = pool[:1_500], pool[1_500:80_000]
    kinds = ("exact", "inside", "upper", "noisy")
    leaks = []
    for number, (code, text) in enumerate(rng.sample(held, 600)):
        kind = kinds[number % 4]
        other = rng.choice(train)[1]
        noisy = vary(text, "char2", [], rng, False)
        inside, upper = f"{other} {text} {other[::-1]}", f"Translate this: {text.upper()}"
        made = dict(zip(kinds, (text, inside, upper, f"{other} {noisy} {other}")))[kind]
        leaks.append((code, made, kind))
    records = [Record({"text": text, "language": code}, "train", i) for i, (code, text) in enumerate(train)]
    records += [
        Record({"text": text, "language": code}, kind, i) for i, (code, text, kind) in enumerate(leaks)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "eval.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for _, text in held), encoding="utf-8")
        before = path.read_bytes()
        config = GovernanceConfig(only=("overlap",), against=(str(path),), max_reject_share=1.0)
        started = time.process_time()
        gone = rejected(records, config)
        seconds = time.process_time() - started
        untouched = path.read_bytes() == before
    found = Counter(record.path for record in gone)
    recall = sum(found[kind] for kind in kinds) / len(leaks)
    heads = ["recall", *kinds, "other removed", "records/s", "eval unchanged"]
    shares = [f"{found[kind] / 150:.2f}" for kind in kinds]
    row = [f"{recall:.3f}", *shares, found["train"], int(len(records) / seconds), untouched]
    show("Overlap with 1,500 evaluation texts, 600 planted leaks", heads, [row])


def parallel() -> None:
    """False alarms on good translations, and faults caught, by pair."""
    texts = {
        path.stem: path.read_text(encoding="utf-8").splitlines()
        for path in sorted((DATA / "ntrex128").glob("*.txt"))
    }
    source = texts["eng_Latn"]
    rows = []
    for code, target in texts.items():
        if code == "eng_Latn":
            continue
        kinds = [{0: "half", 1: "copy", 2: "shifted"}.get(i % 20, "good") for i in range(len(target))]
        records = []
        for i, kind in enumerate(kinds):
            turns = {"prompt": source[i], "completion": translate(source, target, i, kind) or "x"}
            records.append(Record({**turns, "language": code, "source_language": "en"}, code, i))
        items = judged(records, GovernanceConfig(only=("parallel",), max_reject_share=1.0)).items
        gone, flagged = Counter(), Counter()
        for item, kind in zip(items, kinds):
            gone[kind] += bool(item.decision)
            flagged[kind] += bool(item.decision or item.flags)
        share = {kind: gone[kind] / kinds.count(kind) for kind in kinds}
        told = flagged["shifted"] / kinds.count("shifted")
        rest = [f"{rate:.0%}" for rate in (share["copy"], share["half"], share["shifted"], told)]
        rows.append([code, f"{share['good']:.2%}", *rest])
    heads = ["target", "good rejected", "copies", "halves", "misaligned", "misaligned, with flags"]
    show("Parallel, NTREX-128 en → X, a twentieth of each fault", heads, rows)


def translate(source: list[str], target: list[str], i: int, kind: str) -> str:
    """The translation of line `i`, whole, cut in half, not translated, or that of another line."""
    whole = target[i] if kind != "shifted" else target[(i + 77) % len(target)]
    return {"half": whole[: len(whole) // 2], "copy": source[i]}.get(kind, whole)

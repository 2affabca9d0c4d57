"""Measure data governance on real text with planted faults, and print the tables of docs/governance.md.

    python tools/bench_governance.py                 all tables, about ten minutes on two cores
    python tools/bench_governance.py language near   some of them

Rates are by processor time, so that other work on the machine does not count; the whole pass is by the clock.
Needs the development data (MLX_HYBRID_DATA, else ../shared/data). `near` compares with datasketch and datatrove where
they are installed.
"""

import base64
import html
import json
import lzma
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.governance.characters import Batch, letters_only
from mlx_hybrid.governance.curate import govern_files
from mlx_hybrid.governance.duplicates import grams, jaccard
from mlx_hybrid.governance.engines import load_engine
from mlx_hybrid.governance.language import check_languages
from mlx_hybrid.governance.languages import parse_language, relatives_of
from mlx_hybrid.governance.minhash import normalise
from mlx_hybrid.governance.pipeline import govern_records
from mlx_hybrid.governance.quality import check_quality, check_unicode
from mlx_hybrid.governance.records import Record

DATA = Path(os.environ.get("MLX_HYBRID_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
VARIANTS = ("arb_Latn", "zho_Hant", "mya_Mymr")  # beyond the 19 languages
SHORTEST = {"zh": 35, "th": 50}


def flores() -> dict[str, list[str]]:
    paths = sorted((DATA / "flores200" / "dev").glob("*.txt"))
    return {path.stem: path.read_text(encoding="utf-8").splitlines() for path in paths}


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """`count` distinct lines over the 19 languages as (language, text), shuffled.

    They have 58 to 400 characters (from 35 in Chinese, 50 in Thai) and no links.
    """
    pools = {}
    for path in sorted((DATA / "text").glob("*.txt.xz")):
        lines = dict.fromkeys(lzma.decompress(path.read_bytes()).decode("utf-8").splitlines())
        pools[path.name.split(".")[0]] = [
            line
            for line in lines
            if SHORTEST.get(path.name[:2], 58) <= len(line) <= 400 and "http" not in line
        ]
    rng = random.Random(seed)
    for pool in pools.values():
        rng.shuffle(pool)
    chosen: list[tuple[str, str]] = []
    place = 0
    while len(chosen) < count and any(place < len(pool) for pool in pools.values()):
        chosen += [(name, pool[place]) for name, pool in pools.items() if place < len(pool)]
        place += 1
    chosen = chosen[:count]
    rng.shuffle(chosen)
    return chosen


def show(title: str, heads: list[str], rows: list[list]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(f'{cell:.4g}' if isinstance(cell, float) else str(cell) for cell in row)} |")
    sys.stdout.flush()


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
            found = [
                engine.codes[i] for i in engine.predict([letters_only(line) for line in lines]).argmax(1)
            ]
            seconds = time.process_time() - started
            exact = sum(top == declared.code for top in found) / len(lines)
            related = sum(top in relatives_of(declared.code) for top in found) / len(lines)
            verdicts = check_languages(lines, [code] * len(lines), engine)
            wrong = sum(verdict.reject is not None for verdict in verdicts)
            swaps = [
                rng.choice([c for c in others if parse_language(c).code != declared.code])
                for _ in lines[::10]
            ]
            swapped = [texts[other][i] for i, other in zip(range(0, len(lines), 10), swaps)]
            caught = sum(
                v.reject is not None for v in check_languages(swapped, [code] * len(swapped), engine)
            )
            rows.append(
                [
                    code,
                    exact,
                    related,
                    f"{wrong / len(lines):.2%}",
                    f"{caught}/{len(swapped)}",
                    int(len(lines) / seconds),
                ]
            )
            if code not in VARIANTS:
                totals.update(exact=exact, related=related)
            if code != "arb_Latn":
                totals.update(wrong=wrong, lines=len(lines), caught=caught, swapped=len(swapped))
        rows.append([
            "all", totals["exact"] / 19, totals["related"] / 19, f"{totals['wrong'] / totals['lines']:.3%}",
            f"{totals['caught'] / totals['swapped']:.2%}", "",
        ])  # fmt: skip
        heads = ["language", "accuracy", "with relatives", "false rejects", "swaps caught", "texts/s"]
        show(
            f"Language, {name}: FLORES dev; `all` leaves arb_Latn out of rejects, variants out of accuracy",
            heads,
            rows,
        )


def planted_duplicates(
    records: list[tuple[str, str]], count: int, rng: random.Random
) -> list[tuple[str, str, int, str]]:
    """Near copies of six kinds as (language, text, original, kind)."""
    kinds = (
        ["norm"] * 25 + ["wsub1"] * 25 + ["wsub10"] * 15 + ["char2"] * 15 + ["boiler"] * 15 + ["reorder"] * 5
    )
    words = defaultdict(list)
    for code, text in records[:20000]:
        words[code] += [word for word in text.split() if not any(c.isdigit() for c in word)]
    planted = []
    for number, original in enumerate(rng.sample(range(len(records)), count)):
        code, text = records[original]
        kind = kinds[number % len(kinds)]
        planted.append((code, vary(text, kind, words[code], rng, code in ("zh", "th")), original, kind))
    return planted


def vary(text: str, kind: str, words: list[str], rng: random.Random, unspaced: bool) -> str:
    parts = list(text) if unspaced else text.split()
    join = ("" if unspaced else " ").join
    pool = list("".join(words)) if unspaced else words
    if kind == "norm":
        return rng.choice(
            [
                text.upper(),
                text.rstrip(".!?。") + " !",
                "\u200b".join(text.split(" ")[:2]) + " " + " ".join(text.split(" ")[2:]),
                text.replace(" ", "  ") + "  ",
            ]
        )
    if kind in ("wsub1", "wsub10"):
        for _ in range(1 if kind == "wsub1" else max(1, len(parts) // 10)):
            parts[rng.randrange(len(parts))] = rng.choice(pool)
        return join(parts)
    if kind == "char2":
        letters = list(text)
        for _ in range(max(1, len(letters) // 50)):
            letters[rng.randrange(len(letters))] = rng.choice(letters)
        return "".join(letters)
    if kind == "boiler":
        return rng.choice([f"Q: {text}", f"{text} (continued)", f"* {text}", f"{text} [source]"])
    cut = len(parts) // 2
    return join(parts[cut:] + parts[:cut])


def templated(texts: list[str], count: int, rng: random.Random) -> list[tuple[str, str]]:
    """One long instruction, each time with other content of a few words."""
    instruction = (
        "You are a careful assistant. Read the following phrase and say in one word whether its tone is friendly, "
        "neutral or hostile, without any explanation and without repeating the phrase itself. The phrase is: "
    )
    seen, made = set(), []
    while len(made) < count:
        words = rng.choice(texts).split()
        start = rng.randrange(max(1, len(words) - 6))
        phrase = " ".join(words[start : start + 6])
        if phrase not in seen and len(phrase) > 15 and not any(c.isdigit() for c in phrase):
            seen.add(phrase)
            made.append(("en", instruction + phrase))
    return made


def near_set(size: int) -> tuple[list[tuple[str, str]], dict[int, tuple[int, str]], set[int]]:
    """Records in shuffled order, the planted copies by place with their original's place, and the templated ones."""
    rng = random.Random(1)
    base = sentences(size * 8 // 10)
    pools = defaultdict(list)
    for code, text in base:
        pools[code].append(text)
    codes = [rng.choice(base)[0] for _ in range(size * 8 // 100)]
    hard = [
        (code, " ".join(rng.sample(pools[code], rng.randint(2, 4)))) for code in codes if len(pools[code]) > 4
    ]
    template = templated([t for c, t in base if c == "en"], size * 2 // 100, rng)
    planted = planted_duplicates(base, size // 10, rng)
    records = base + hard + template + [(code, text) for code, text, _, _ in planted]
    order = list(range(len(records)))
    rng.shuffle(order)
    place = {old: new for new, old in enumerate(order)}
    first = len(base) + len(hard) + len(template)
    copies = {place[first + i]: (place[original], kind) for i, (_, _, original, kind) in enumerate(planted)}
    templates = {place[len(base) + len(hard) + i] for i in range(len(template))}
    return [records[old] for old in order], copies, templates


def alike(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Whether the exact Jaccard of a planted pair is 0.8 or more."""
    n = 3 if one[0] in SHORTEST else 5
    return jaccard(grams(normalise(one[1]), n), grams(normalise(other[1]), n)) >= 0.8


def score_near(
    removed: set[int], copies: dict[int, tuple[int, str]], templates: set[int], similar: set[int]
) -> list:
    """Recall by kind, and among `similar` pairs: a pair is found when either of its two is removed."""
    reached = sum(bool(removed & {copy, copies[copy][0]}) for copy in similar) / max(1, len(similar))
    found = Counter(kind for copy, (original, kind) in copies.items() if removed & {copy, original})
    total = Counter(kind for _, kind in copies.values())
    pairs = set(copies) | {original for original, _ in copies.values()}
    recall = sum(found.values()) / len(copies)
    by_kind = [f"{found[kind] / total[kind]:.2f}" for kind in sorted(total)]
    lost = f"{len(removed & templates) / len(templates):.2%}"
    return [f"{recall:.3f}", f"{reached:.3f}", *by_kind, lost, len(removed - pairs - templates)]


def near(size: int = 100_000) -> None:
    """Recall on planted copies beside datasketch and datatrove, on one core."""
    records, copies, templates = near_set(size)
    similar = {copy for copy, (original, _) in copies.items() if alike(records[copy], records[original])}
    rows = []
    for name, method in (
        ("ours, J 0.8", ours(0.8)),
        ("ours, J 0.7", ours(0.7)),
        ("datasketch", datasketch),
        ("datatrove", datatrove),
    ):
        before = time.process_time()
        removed = method(records)
        if removed is None:
            rows.append([name, "not installed"])
            continue
        seconds = time.process_time() - before
        rows.append([name, int(len(records) / seconds), *score_near(removed, copies, templates, similar)])
    kinds = sorted({kind for _, kind in copies.values()})
    heads = [
        "method",
        "records/s",
        "recall",
        "of pairs at J ≥ 0.8",
        *kinds,
        "templated removed",
        "other removed",
    ]
    title = f"{len(records)} records, {len(copies)} planted, {len(templates)} templated, {len(similar)} at J ≥ 0.8"
    show(f"Near-duplicates, {title}", heads, rows)
    print(f"\nPeak memory {peak_mb():.0f} MB, records and text included.")


def ours(threshold: float):
    def run(records: list[tuple[str, str]]) -> set[int]:
        config = GovernanceConfig(only=("exact", "near"), near_threshold=threshold, max_reject_share=1.0)
        result = govern_records(as_records(records), config)
        return {rejection.record.line for rejection in result.rejected}

    return run


def as_records(records: list[tuple[str, str]]) -> list[Record]:
    return [
        Record({"text": text, "language": code}, "bench", line) for line, (code, text) in enumerate(records)
    ]


def datasketch(records: list[tuple[str, str]]) -> set[int] | None:
    """Word 5-grams, 14 bands of 8, Jaccard of the signatures at 0.7, as its users run it."""
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError:
        return None
    index = MinHashLSH(params=(14, 8), num_perm=112)
    removed = set()
    for line, (_, text) in enumerate(records):
        words = text.lower().split()
        sketch = MinHash(num_perm=112)
        sketch.update_batch([" ".join(words[i : i + 5]).encode() for i in range(max(1, len(words) - 4))])
        if any(sketch.jaccard(kept) >= 0.7 for _, kept in (pair for pair in index.query(sketch))):
            removed.add(line)
        else:
            index.insert((line, Hashed(sketch)), sketch, check_duplication=False)
    return removed


class Hashed:
    """A signature that can stand in a key."""

    def __new__(cls, sketch):
        from datasketch import LeanMinHash

        return LeanMinHash(sketch)


def datatrove(records: list[tuple[str, str]]) -> set[int] | None:
    """Its four local MinHash steps with their defaults."""
    try:
        from datatrove.pipeline.dedup.minhash import MinhashConfig
    except ImportError:
        return None
    try:
        with tempfile.TemporaryDirectory() as folder:
            return run_datatrove(records, folder, MinhashConfig())
    except Exception as error:  # a missing extra shows only when a step runs
        print(f"datatrove: {error}", file=sys.stderr)
        return None


def run_datatrove(records: list[tuple[str, str]], folder: str, config) -> set[int]:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    source = Path(folder) / "in"
    source.mkdir()
    with (source / "records.jsonl").open("w", encoding="utf-8") as file:
        rows = ({"text": text, "id": str(line)} for line, (_, text) in enumerate(records))
        file.writelines(json.dumps(row) + "\n" for row in rows)
    reader = JsonlReader(str(source))
    writer = JsonlWriter(f"{folder}/out", compression=None)
    steps = [
        [reader, MinhashDedupSignature(f"{folder}/sig", config=config)],
        [MinhashDedupBuckets(f"{folder}/sig", f"{folder}/buckets", config=config)],
        [MinhashDedupCluster(f"{folder}/buckets", f"{folder}/remove", config=config)],
        [reader, MinhashDedupFilter(f"{folder}/remove", exclusion_writer=writer)],
    ]
    for number, step in enumerate(steps):
        tasks = config.num_buckets if number == 1 else 1
        LocalPipelineExecutor(step, tasks=tasks, workers=1, logging_dir=f"{folder}/log{number}").run()
    removed: set[int] = set()
    for path in Path(folder, "out").rglob("*.jsonl"):
        removed |= {int(json.loads(line)["id"]) for line in path.read_text(encoding="utf-8").splitlines()}
    return removed


def faults(text: str, rng: random.Random) -> dict[str, str]:
    """The text with one fault of each kind."""
    letters = list(text)
    place = rng.randrange(len(text))
    return {
        "replacement": text[:place] + "\ufffd" + text[place:],
        "control": text[:place] + "\x00" + text[place:],
        "surrogate": text[:place] + "\ud83d" + text[place:],
        "repetition": (text[:30] + " ") * 12,
        "char run": text[:place] + rng.choice([c for c in letters if c.isalpha()]) * 12 + text[place:],
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
    show(
        "Quality, rejected lines of FLORES dev",
        ["language", "lines", "rejected", "of these really mojibake"],
        rows,
    )
    show(
        "Quality, planted faults",
        ["fault", "planted", "caught"],
        [[k, total[k], f"{caught[k] / total[k]:.2%}"] for k in total],
    )


def broken(lines: list[str]) -> list[bool]:
    batch = Batch(lines)
    return [bool(a or b) for a, b in zip(check_unicode(batch), check_quality(batch))]


def outliers() -> None:
    """What the character model learnt from the records finds among 1,000 records a language with 10 % junk."""
    rng = random.Random(3)
    caught, total = Counter(), Counter()
    everything = flores()
    for code, lines in everything.items():
        kinds, records = [], []
        for line in lines:
            kind = (
                rng.choice(["shuffled letters", "random ascii", "other language"])
                if rng.random() < 0.1
                else "clean"
            )
            kinds.append(kind)
            if kind == "shuffled letters":
                line = "".join(rng.sample(line, len(line)))
            elif kind == "random ascii":
                line = " ".join(
                    "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 9)))
                    for _ in range(15)
                )
            elif kind == "other language":
                line = rng.choice(everything[rng.choice([c for c in everything if c != code])])
            records.append(Record({"text": line, "language": code}, code, len(records)))
        config = GovernanceConfig(only=("outliers",), outliers="reject", max_reject_share=1.0)
        gone = {rejection.record.line for rejection in govern_records(records, config).rejected}
        for i, kind in enumerate(kinds):
            total[kind] += 1
            caught[kind] += i in gone
    show("Outliers, 22 codes, 997 records each, a tenth junk", ["kind", "records", "removed"],
         [[kind, total[kind], f"{caught[kind] / total[kind]:.2%}"] for kind in sorted(total)])  # fmt: skip


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
        made = {
            "exact": text, "inside": f"{other} {text} {other[::-1]}", "upper": f"Translate this: {text.upper()}",
            "noisy": f"{other} {noisy} {other}",
        }[kind]  # fmt: skip
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
        result = govern_records(records, config)
        seconds = time.process_time() - started
        untouched = path.read_bytes() == before
    found = Counter(rejection.record.path for rejection in result.rejected)
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
        kinds = [
            "half" if i % 20 == 0 else "copy" if i % 20 == 1 else "shifted" if i % 20 == 2 else "good"
            for i in range(len(target))
        ]
        records = [
            Record(
                {
                    "prompt": source[i],
                    "completion": translate(source, target, i, kinds[i]) or "x",
                    "language": code,
                    "source_language": "en",
                },
                code,
                i,
            )
            for i in range(len(target))
        ]
        result = govern_records(records, GovernanceConfig(only=("parallel",), max_reject_share=1.0))
        gone = {rejection.record.line for rejection in result.rejected}
        flagged = gone | {record.line for record, flags in zip(result.kept, result.flags) if flags}
        rate = {
            kind: sum(i in gone for i, k in enumerate(kinds) if k == kind) / kinds.count(kind)
            for kind in set(kinds)
        }
        told = sum(i in flagged for i, k in enumerate(kinds) if k == "shifted") / kinds.count("shifted")
        rows.append(
            [
                code,
                f"{rate['good']:.2%}",
                f"{rate['copy']:.0%}",
                f"{rate['half']:.0%}",
                f"{rate['shifted']:.0%}",
                f"{told:.0%}",
            ]
        )
    show("Parallel, NTREX-128 en → X, a twentieth of each fault",
         ["target", "good rejected", "copies", "halves", "misaligned", "misaligned, with flags"], rows)  # fmt: skip


def translate(source: list[str], target: list[str], i: int, kind: str) -> str:
    """The translation of line `i`, whole, cut in half, not translated, or that of another line."""
    whole = target[i] if kind != "shifted" else target[(i + 77) % len(target)]
    return {"half": whole[: len(whole) // 2], "copy": source[i]}.get(kind, whole)


def whole(sizes: tuple[int, ...] = (100_000,)) -> None:
    """Seconds and memory of a whole pass from file to folder, by size and workers."""
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "records.jsonl"
            write_records(path, size)
            for workers in (1, 2) if size <= 100_000 else (2,):
                output = Path(folder) / f"out-{workers}"
                config = GovernanceConfig(workers=workers, max_reject_share=1.0)
                started, spent = time.perf_counter(), processor_seconds()
                result = govern_files([path], output, config)
                seconds, spent = time.perf_counter() - started, processor_seconds() - spent
                kept = sum(decision is None for decision in result.ledger.decisions)
                digest = json.loads((output / "manifest.json").read_text())["outputs"][2]["sha256"][:12]
                rows.append(
                    [
                        size,
                        workers,
                        f"{seconds:.1f}",
                        f"{spent:.1f}",
                        int(size / seconds),
                        f"{peak_mb():.0f}",
                        kept,
                        digest,
                    ]
                )
    show(
        "Whole pass",
        [
            "records",
            "workers",
            "seconds",
            "processor s",
            "records/s",
            "peak MB of the main process",
            "kept",
            "kept.jsonl",
        ],
        rows,
    )


def write_records(path: Path, size: int) -> None:
    """`size` records made of the near-duplicate set; beyond it, texts are joined anew so that they differ."""
    records, _, _ = near_set(100_000)
    rng = random.Random(7)
    with path.open("w", encoding="utf-8") as file:
        for i in range(size):
            code, text = records[i % len(records)]
            if i >= len(records):
                cut = rng.randrange(len(text))
                other = records[rng.randrange(len(records))][1]
                text = f"{text[cut:]} {other} {text[:cut]}"[: len(text)]
            file.write(json.dumps({"text": text, "language": code}, ensure_ascii=False) + "\n")


def processor_seconds() -> float:
    """Of this process and those it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def million() -> None:
    """The whole pass at a million records."""
    whole((200_000, 1_000_000))


def near_small() -> None:
    """The comparison at a fifth of the size."""
    near(20_000)


def linear() -> None:
    """Processor time by size."""
    whole((25_000, 200_000))


TABLES = {
    f.__name__: f
    for f in (language, near, quality, outliers, overlap, parallel, whole, near_small, linear, million)
}


LONGER = ("near_small", "linear", "million")


if __name__ == "__main__":
    for table in sys.argv[1:] or [name for name in TABLES if name not in LONGER]:
        TABLES[table]()

"""Near copies of six kinds, and templated records that are none."""

import random
from collections import defaultdict

from governance_tables.text import SHORTEST, sentences
from mlx_hybrid.governance.checks.grams import Likeness, normalise


def planted_duplicates(
    records: list[tuple[str, str]], count: int, rng: random.Random
) -> list[tuple[str, str, int, str]]:
    """Near copies of six kinds as (language, text, original, kind)."""
    kinds = ["norm"] * 25 + ["wsub1"] * 25 + ["wsub10"] * 15 + ["char2"] * 15
    kinds += ["boiler"] * 15 + ["reorder"] * 5
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
        words = text.split(" ")
        joined = "\u200b".join(words[:2]) + " " + " ".join(words[2:])
        return rng.choice([text.upper(), text.rstrip(".!?。") + " !", joined, text.replace(" ", "  ") + "  "])
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
    text, *others = normalise((one[1], other[1]))
    return Likeness(n, 0.8).jaccards(text, others)[0] >= 0.8

"""Faults planted in training records, so that what governance is worth can be measured."""

import copy
import random
from collections.abc import Sequence

KINDS = ("language", "mojibake", "repetition", "copy")
COPIES = 4  # repeats of one record in a row, so that copies weigh on training
LONGEST_WORD = 12  # letters of the word that is repeated; without spaces the last word is the whole line


def plant_noise(records: Sequence[dict], share: float, *, seed: int) -> list[dict]:
    """The records and planted ones after them, `share` of the whole, each kind as often as the others.

    A planted record says which fault it holds under `planted`: a text of another language than it declares and with
    an answer to another text, one decoded wrongly, one word over and over, or a near-copy. They come last, so that of a
    record and its copies governance keeps the record. A kind that these records cannot have is left out.
    """
    wanted = round(share / (1 - share) * len(records)) if share else 0
    rng, planted, number = random.Random(seed), [], 0
    pools = {kind: own for kind in KINDS if (own := sources(kind, records))}
    while len(planted) < wanted:
        kind = list(pools)[number % len(pools)]
        source = rng.choice(pools[kind])
        for place, text in enumerate(faulty(kind, source, records, rng)[: wanted - len(planted)]):
            name = f"planted-{number}-{place}"
            made = copy.deepcopy(source) | {"id": name, "group": name, "planted": kind}
            holder, key = question(made)
            holder[key] = text
            planted.append(made)
        number += 1
    return [*records, *planted]


def sources(kind: str, records: Sequence[dict]) -> Sequence[dict]:
    """The records that this kind of fault can be made of: plain ASCII comes out of a wrong decoding as it was, and a
    question of another language takes two."""
    if kind == "mojibake":
        return [record for record in records if not asked(record).isascii()]
    alone = len({record.get("language") for record in records}) < 2
    return [] if kind == "language" and alone else records


def faulty(kind: str, source: dict, records: Sequence[dict], rng: random.Random) -> list[str]:
    """What stands in the place of a record's question, a text a record to plant."""
    text = asked(source)
    if kind == "language":
        others = [record for record in records if record.get("language") != source.get("language")]
        return [asked(rng.choice(others))]
    if kind == "mojibake":
        return [text.encode().decode("latin-1")]
    if kind == "repetition":
        return [" ".join([text.split()[-1][-LONGEST_WORD:]] * 40)]
    return [text.rstrip(" .!") + " ." * n for n in range(1, COPIES + 1)]


def question(record: dict) -> tuple[dict, str]:
    """Where the last user turn, prompt, or plain text stands: what holds it, and its key there."""
    if "messages" in record:
        return next(turn for turn in reversed(record["messages"]) if turn["role"] == "user"), "content"
    return record, "prompt" if "prompt" in record else "text"


def asked(record: dict) -> str:
    holder, key = question(record)
    return holder[key]

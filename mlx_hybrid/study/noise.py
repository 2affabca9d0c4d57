"""Faults planted in training records, so that what governance is worth can be measured."""

import copy
import random
from collections.abc import Callable, Sequence

KINDS = ("language", "mojibake", "repetition", "copy")
COPIES = 4  # repeats of one record in a row, so that copies weigh on training
LONGEST_WORD = 12  # letters of the word that is repeated


def plant_noise(records: Sequence[dict], share: float, *, seed: int) -> list[dict]:
    """The records and planted ones after them, `share` of the whole, each kind as often as the others.

    A planted record says which fault it holds under `planted`: a text of another language than it declares and with
    an answer to another text, one decoded wrongly, one word over and over, or a near-copy. They come last, so that of a
    record and its copies governance keeps the record. A kind that these records cannot have is left out.
    """
    wanted = round(share / (1 - share) * len(records)) if share else 0
    rng = random.Random(seed)
    pools = sources_by_kind(records)
    kinds = [kind for kind in KINDS if pools[kind]]
    planted: list[dict] = []
    number = 0
    while len(planted) < wanted:
        kind = kinds[number % len(kinds)]
        source = pools[kind][rng.randrange(len(pools[kind]))]
        made = MAKERS[kind](source, records, rng)
        for place, record in enumerate(made[: wanted - len(planted)]):
            name = f"planted-{number}-{place}"
            planted.append({**record, "id": name, "group": name, "planted": kind})
        number += 1
    return [*records, *planted]


def sources_by_kind(records: Sequence[dict]) -> dict[str, Sequence[dict]]:
    """The records that each kind of fault can be made of: plain ASCII comes out of a wrong decoding as it was, and a
    question of another language takes two."""
    languages = {record.get("language") for record in records}
    return {
        "language": records if len(languages) > 1 else [],
        "mojibake": [record for record in records if not asked(record).isascii()],
        "repetition": records,
        "copy": records,
    }


def other_language(source: dict, records: Sequence[dict], rng: random.Random) -> list[dict]:
    """The question of another language's record, this record's language and answer."""
    others = [record for record in records if record.get("language") != source.get("language")]
    question = asked(others[rng.randrange(len(others))])
    return [with_question(source, lambda text: question)]


def wrongly_decoded(source: dict, records: Sequence[dict], rng: random.Random) -> list[dict]:
    return [with_question(source, lambda text: text.encode().decode("latin-1"))]


def repeated(source: dict, records: Sequence[dict], rng: random.Random) -> list[dict]:
    # Of a script without spaces the last word is the whole line.
    return [with_question(source, lambda text: " ".join([text.split()[-1][-LONGEST_WORD:]] * 40))]


def near_copies(source: dict, records: Sequence[dict], rng: random.Random) -> list[dict]:
    return [
        with_question(source, lambda text, n=n: text.rstrip(" .!") + " ." * n) for n in range(1, COPIES + 1)
    ]


MAKERS: dict[str, Callable] = {
    "language": other_language,
    "mojibake": wrongly_decoded,
    "repetition": repeated,
    "copy": near_copies,
}


def asked(record: dict) -> str:
    """The text of the last user turn, prompt, or plain text."""
    if "messages" in record:
        return next(t["content"] for t in reversed(record["messages"]) if t["role"] == "user")
    return record["prompt"] if "prompt" in record else record["text"]


def with_question(record: dict, change: Callable[[str], str]) -> dict:
    made = copy.deepcopy(record)
    if "messages" in made:
        turn = next(t for t in reversed(made["messages"]) if t["role"] == "user")
        turn["content"] = change(turn["content"])
    else:
        key = "prompt" if "prompt" in made else "text"
        made[key] = change(made[key])
    return made

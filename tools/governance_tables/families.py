"""Instruction records of the kinds that people train on, and answers that are junk: what the rules take of either."""

# ruff: noqa: E501 (a record a line)

import base64
import json
import os
import random
import string
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from governance_tables.text import flores, judged, show
from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.records.languages import parse_language
from mlx_hybrid.records.record import Record

SIZE = 3_000
ROOTS = (*map(sysconfig.get_path, ("stdlib", "purelib")), "/usr/include", "/usr/share", "/usr/local")
SUFFIXES = {"py": "Python", "js": "JavaScript", "h": "C++", "go": "Go", "pl": "Perl"}
SUFFIXES |= {"css": "CSS", "yaml": "YAML", "sh": "shell"}
NAMES = ["Anna", "Ben", "Chloé", "Dario", "Emeka", "Fatima", "Goran", "Hana", "Ivy", "Juma", "Kofi", "Lena"]
THINGS = [
    "order",
    "invoice",
    "parcel",
    "refund",
    "password",
    "account",
    "delivery",
    "payment",
    "subscription",
]
WORDS = "user item price name count city date total value index row key size level score status group".split()  # noqa: SIM905


def talk(prompt: str, answer: str, **fields) -> dict:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "language": "en", **fields}


def real_code(rng: random.Random) -> Iterator[dict]:
    """Pieces of the source files that lie on this machine, as answers without a fence or within one."""
    paths = sorted(
        Path(folder, file)
        for root in ROOTS
        for folder, _, files in os.walk(root)
        for file in files
        if "unicore" not in folder and "Collate" not in folder
    )
    pieces = []
    for suffix in SUFFIXES:
        found = [path for path in dict.fromkeys(paths) if path.suffix == f".{suffix}"]
        for path in rng.sample(found, min(len(found), 800)):
            lines = path.read_bytes()[:40_000].decode("utf-8", "ignore").expandtabs(4).splitlines()
            if len(lines) > 8 and max(map(len, lines)) < 200:
                start = rng.randrange(len(lines) - 6)
                piece = "\n".join(lines[start : start + rng.randrange(6, 40)]).strip("\n")
                pieces.append((SUFFIXES[suffix], piece))
    for name, piece in pieces:
        if not piece.strip() or any(mark in piece for mark in ("\ufffd", "\x0c", "0020.0002", "0008]")):
            continue
        fence = rng.random() < 0.3
        answer = f"Here it is:\n\n```{name.lower()}\n{piece}\n```" if fence else piece
        what = f"handles the {rng.choice(WORDS)} of a {rng.choice(WORDS)}"
        yield talk(f"Write a piece of {name} that {what}.", answer)


def written_code(rng: random.Random) -> Iterator[dict]:
    """Short answers in code: queries, JSX, commands, configuration, expressions."""
    while True:
        a, b, c = rng.sample(WORDS, 3)
        n, m = rng.randrange(1, 1000), rng.randrange(2, 30)
        tag, other = rng.choice(("div", "section", "ul", "table")), rng.choice(("h1", "li", "p", "span"))
        yield from (
            talk(f"How do I get the {a} of each {b}?", f"SELECT {a}, COUNT(*) FROM {b}s WHERE {c} > {n} GROUP BY {a};"),
            talk(f"A component for the {a}", f'const {a.title()} = ({{ {b} }}) => (\n  <{tag} className="{a}">\n    <{other}>{{{b}.{c}}}</{other}>\n  </{tag}>\n);\nexport default {a.title()};'),
            talk(f"Show the {a}s in the folder", f"ls -la ./{a}s | grep -v {b} | sort -k{m % 9} > {c}.txt"),
            talk(f"A list of squares up to {m}", f"[{a}**2 for {a} in range({m})]"),
            talk(f"Match a {a} of {m} digits", rf"^\d{{{m}}}([A-Z]{{2,}}-\d+)?[^{b[0]}-{b[1]}]*$"),
            talk(f"The page for a {a}", f'<!DOCTYPE html>\n<html>\n<head><title>{a}</title></head>\n<body>\n  <{tag} id="{b}">\n    <{other}>{c}</{other}>\n  </{tag}>\n</body>\n</html>'),
            talk(f"Write the {a} as JSON", json.dumps({a: n, b: [m, n], c: {"id": n, "ok": True, "of": None}}, indent=rng.choice((None, 2)))),
            talk(f"Sort {a}s by {b} in C++", f"#include <vector>\n#include <algorithm>\n\nvoid f(std::vector<int>& {a}) {{\n  std::sort({a}.begin(), {a}.end(), [](int x, int y) {{ return x > y; }});\n  {a}[{m}] = {n} % {m};\n}}"),
            talk(f"Install {a}", f"sudo apt-get install {a}-{b}\npip install {a}=={m}.{n}\nexport {c.upper()}=/opt/{a}/{b}"),
            talk("Wer ist im Dokument gemeint?", f"<answer>{rng.choice(NAMES)}</answer>", language="de"),
            talk(f"What does this return? `{a}({n})`", rng.choice(("None", "[]", "{}", "null", f"{n}", f"'{b}'", "True"))),
        )  # fmt: skip


def mathematics(rng: random.Random) -> Iterator[dict]:
    while True:
        a, b, c = (rng.randrange(2, 9_999) for _ in range(3))
        numbers = rng.sample(range(1, 9_999), rng.randrange(5, 14))
        x, y = rng.randrange(1, 12), rng.randrange(1, 12)
        yield from (
            talk(f"What is {a} * {b}?", f"{a} * {b} = {a * b}"),
            talk(f"{a} + {b} + {c} = ?", f"{a} + {b} = {a + b}\n{a + b} + {c} = {a + b + c}"),
            talk(f"Calculate {x}% of {a}.", f"{x}% of {a} is {a * x / 100:g}."),
            talk(f"Sort these numbers: {', '.join(map(str, numbers))}", rng.choice((", ", " ", "\n")).join(map(str, sorted(numbers)))),
            talk(f"Solve x^2 - {x + y}x + {x * y} = 0.", f"We factor: $x^2 - {x + y}x + {x * y} = (x - {x})(x - {y})$.\nSo $x = {x}$ or $x = {y}$."),
            talk(f"Integrate {x}x^{y}.", f"\\[\\int {x}x^{{{y}}}\\,dx = \\frac{{{x}}}{{{y + 1}}}x^{{{y + 1}}} + C\\]"),
            talk(f"Simplify {a}/{b}", f"\\frac{{{a}}}{{{b}}} \\approx {a / b:.4f}"),
            talk(f"{x}+{y}?", f"<think>\nEasy: {x}+{y}={x + y}.\n</think>\n\n{x + y}"),
            talk(f"{rng.choice(NAMES)} buys {x} pens at {y} dollars each and pays with {a}. What is the change?", f"The pens cost {x} x {y} = ${x * y}.\nThe change is ${a} - ${x * y} = ${a - x * y}.\n#### {a - x * y}"),
            talk(f"The first {x + 4} multiples of {y}", " ".join(str(y * i) for i in range(1, x + 5))),
            talk("Multiply the matrices.", f"[[{a}, {b}], [{c}, {x}]]\n= [[{a * x}, {b * y}], [{c * x}, {x * y}]]"),
            talk(f"Convert {a} to binary", f"{a:b}"),
            talk(f"Berechne {a} - {b}.", f"{a} - {b} = {a - b}", language="de"),
            talk(f"{a} mara {x} ni ngapi?", f"{a} × {x} = {a * x}", language="sw"),
        )  # fmt: skip


def tools(rng: random.Random) -> Iterator[dict]:
    """Calls and what comes back: rows, pages, images, logs, numbers, nothing."""
    while True:
        name, a, b = *rng.sample(WORDS, 2), rng.choice(NAMES)
        n = rng.randrange(10_000)
        rows = [{"id": i, a: i * n % 97, b: i * i} for i in range(rng.randrange(3, 40))]
        image = base64.b64encode(rng.randbytes(rng.randrange(60, 400))).decode()
        failed = f"ERROR [{a}] \x1b[31m{name}\x1b[0m failed"
        log = "\n".join(f"2024-05-{d:02d} 10:{n % 60:02d}:00 {failed} ({n * d})" for d in range(1, 9))
        page, table = f"<html><body><h1>{b}</h1><p>{a}</p></body></html>", f"{a},{name}\n{n},1\n{n},2"
        result = rng.choice((json.dumps(rows), image, log, page, str(n), "", "OK", table, "null"))
        call = {"type": "function", "function": {"name": f"get_{name}", "arguments": json.dumps({a: n})}}
        told = (
            f"There are {n} of them.",
            f"{b} has {n}.",
            json.dumps(rows[:3]),
            f"Done: {n}",
            "It is not there.",
        )
        said = rng.choice(told)
        turns = [
            {"role": "user", "content": rng.choice((f"Get the {name} of {b}.", f"{name}?", f"{n}*{n}"))},
            {"role": "assistant", "content": rng.choice(("", None, "Let me look.")), "tool_calls": [call]},
        ]  # fmt: skip
        ends = [{"role": "tool", "content": result}, {"role": "assistant", "content": said}]
        yield {"messages": turns + ends if rng.random() < 0.8 else turns, "language": "en"}


def support(rng: random.Random) -> Iterator[dict]:
    """Customers and those who help them."""
    while True:
        name, thing, other = rng.choice(NAMES), rng.choice(THINGS), rng.choice(THINGS)
        n, hour = rng.randrange(10_000, 99_999), rng.randrange(8, 20)
        yield from (
            talk(f"Hi, where do I find my {thing}?", f"Hello {name}! Go to Account > Orders > {thing.title()} > Download and choose PDF."),
            talk(f"my {thing} #{n} is late!!!!!!!!", f"I'm sooooo sorry, {name} 😔😔😔 Your {thing} #{n} leaves today at {hour}:00."),
            talk(f"How can I change my {thing}?", f"1. Open Settings > {thing.title()} > Edit.\n2. Type the new {other}.\n3. Press **Save**.\n\nThat's it! 🎉"),
            talk("When are you open?", f"Mon {hour - 7}-5 | Tue {hour - 7}-5 | Wed {hour - 7}-5 | Thu {hour - 7}-8 | Fri {hour - 7}-5"),
            talk(f"Is the {thing} free?", rng.choice(("Yes.", "No.", "Yes, it is.", "Sure! 👍", "👍", "Not yet", f"No, {n % 90} €.", "Haha, yes!"))),
            talk("Thanks!", rng.choice(("You're welcome!", "Any time, " + name + " :-)", "😊", "No problem!!!", "Gern!", "…anytime"))),
            talk(f"Where is the policy on {thing}s?", f"Here: https://shop.example.com/help/{thing}s/{n}?lang=en&ref=chat#top"),
            talk(f"Compare the plans for my {thing}", f"| Plan | {thing} | Price |\n| --- | --- | --- |\n| Basic | 1 | {n % 10} € |\n| Plus | 5 | {n % 50} € |"),
            talk(f"Wo finde ich meine Rechnung {n}?", f"Unter Konto > Bestellungen > Rechnung, {name}. Sie ist ab {hour} Uhr da.", language="de"),
            talk(f"Où est ma commande {n} ?", f"Bonjour {name}, votre commande {n} arrive demain avant {hour} h.", language="fr"),
            talk(f"Oda yangu {n} iko wapi?", f"Habari {name}! Oda yako {n} itafika kesho asubuhi kabla ya saa {hour - 6}.", language="sw"),
            talk(f"मेरा ऑर्डर {n} कहाँ है?", f"नमस्ते! आपका ऑर्डर {n} कल सुबह तक पहुँच जाएगा।", language="hi"),
            talk(f"我的订单{n}在哪里？", f"您好！您的订单{n}明天{hour}点前送到。", language="zh"),
        )  # fmt: skip


def few_shot(rng: random.Random) -> Iterator[dict]:
    """One instruction a set, short texts in it, one of a few labels as the answer; sets of 8 and 16."""
    lines = flores()
    asks = {
        "eng_Latn": "You are a careful assistant. Read the following text and say in one word what it is about: science, sports, travel, politics or health. Text: ",
        "deu_Latn": "Lies den folgenden Text aufmerksam und sage in einem Wort, ob er von Sport, Reisen, Politik oder Gesundheit handelt. Text: ",
        "swh_Latn": "Soma maandishi yafuatayo kwa makini na useme kwa neno moja yanahusu nini: sayansi, michezo, safari au siasa. Maandishi: ",
    }  # fmt: skip
    for number in range(100_000):
        code = rng.choice(list(asks))
        ask = asks[code].replace("careful", rng.choice(("careful", "helpful", "patient")))
        ask += f"[{'ABCDEFG'[number % 7]}] "
        for text in rng.sample(lines[code], rng.choice((8, 16))):
            short = " ".join(text.split()[: rng.randrange(3, 9)])
            label = rng.choice(("science/technology", "sports", "travel", "politics", "B", "1"))
            yield talk(ask + short, label, language=code)


GOOD = (real_code, written_code, mathematics, tools, support, few_shot)
PROGRAMS = ("None", "nan", "null", "NaN", "undefined", "[deleted]")
MARKS = [
    "<|im_start|>assistant\n{}<|im_end|>",
    "{}<|endoftext|>",
    "[INST] {} [/INST]",
    "<s>{}</s>",
    "{}<|eot_id|>",
]
JUNK: dict[str, Callable[[str, random.Random], str]] = {
    "only punctuation": lambda text, rng: rng.choice("….?!-*") * rng.randrange(1, 9),
    "invisible": lambda text, rng: rng.choice("\u200b\ufeff\u2060\u00ad") * rng.randrange(1, 9),
    "None": lambda text, rng: rng.choice(PROGRAMS),
    "one word": lambda text, rng: " ".join([max(text.split(), key=len)[:12]] * rng.randrange(10, 20)),
    "a phrase": lambda text, rng: (text[:25] + ". ") * rng.randrange(8, 14),
    "random letters": lambda text, rng: " ".join(
        "".join(rng.choices(string.ascii_lowercase, k=rng.randrange(3, 9))) for _ in range(10)
    ),
    "marks of a template": lambda text, rng: rng.choice(MARKS).format(text),
    "numbers": lambda text, rng: " ".join(str(rng.randrange(10**6)) for _ in range(12)),
    "symbols": lambda text, rng: "".join(
        rng.choice("!@#$%^&*()[]{}<>/\\|~+=") if rng.random() < 0.6 else c for c in text
    ),
    "base64": lambda text, rng: base64.b64encode(text.encode()).decode(),
    "a run": lambda text, rng: rng.choice("abcdefg") * rng.randrange(20, 90),
    "spaced letters": lambda text, rng: " ".join(text.replace(" ", "")),
    "HTML": lambda text, rng: f'<div class="a"><p>{text}</p></div>&nbsp;<br/><span></span>',
    "latin-1": lambda text, rng: (text + " Zürich, café, naïve").encode().decode("latin-1"),
    "question marks": lambda text, rng: "Für Müller ist es schön in Zürich, möchte".translate({ord(c): "?" for c in "äöüß"}),
    "koi8-r": lambda text, rng: rng.choice(RUSSIAN).encode("koi8-r", "ignore").decode("cp1251"),
    "the question": lambda text, rng: "",
    "another language": lambda text, rng: rng.choice(OTHERS),
}  # fmt: skip
RUSSIAN = flores()["rus_Cyrl"]
OTHERS = sum((flores()[code] for code in ("deu_Latn", "hau_Latn", "tur_Latn", "rus_Cyrl", "zho_Hans")), [])  # noqa: RUF017
LATIN = ("eng_Latn", "swh_Latn", "fra_Latn", "vie_Latn")


def junk_records(kind: str, rng: random.Random, count: int) -> list[Record]:
    """Questions in four languages, with what is no answer."""
    texts, made = flores(), []
    for number in range(count):
        code = rng.choice(LATIN[:1] if kind in ("base64",) else LATIN)
        prompt, text = rng.sample(texts[code], 2)
        answer = JUNK[kind](text, rng) or prompt
        language = "rus_Cyrl" if kind == "koi8-r" else "deu_Latn" if kind == "question marks" else code
        made.append(Record(talk(prompt, answer, language=language), "junk", number))
    return made


def families(size: int = SIZE) -> None:
    """False rejects of good instruction records by family, and the junk answers that are caught or told of."""
    config = GovernanceConfig(max_reject_share=1.0)
    rows = []
    for family in GOOD:
        rng, records, seen = random.Random(family.__name__), [], set()
        for fields in family(rng):
            key = json.dumps(fields, sort_keys=True)
            if key not in seen and parse_language(fields["language"]):
                seen.add(key)
                records.append(Record(fields, "good", len(records)))
            if len(records) == size:
                break
        items = judged(records, config).items
        found = Counter(item.decision.reason for item in items if item.decision)
        near, _ = found.pop("near_dup", 0), found.pop("exact_dup", 0)
        share = f"{found.total() / len(records):.2%}"
        rows.append([family.__name__, len(records), share, dict(found), near])
        for record, item in zip(records, items):
            if item.decision and "-v" in sys.argv:
                print(item.decision, repr(record.completion()[:300]), file=sys.stderr)
    show("Good instruction records", ["family", "records", "false rejects", "reasons", "near_dup"], rows)
    rows = []
    alone = GovernanceConfig(max_reject_share=1.0, skip=("exact", "near"))
    for kind in JUNK:
        records = junk_records(kind, random.Random(kind), size // 6)
        items = judged(records, alone).items
        caught = sum(bool(item.decision) for item in items)
        told = sum(bool(item.decision or item.flags) for item in items)
        rows.append([kind, len(items), f"{caught / len(items):.1%}", f"{told / len(items):.1%}"])
        for record, item in zip(records, items):
            if not item.decision and "-v" in sys.argv:
                print(kind, item.flags, repr(record.completion()[:200]), file=sys.stderr)
    show("Junk answers", ["kind", "answers", "rejected", "rejected or flagged"], rows)

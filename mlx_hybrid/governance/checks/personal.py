"""Personal data and secrets: found by shape and checksum, told by kind, count and offset, never by content."""

import ipaddress
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import regex

from mlx_hybrid.governance.checks.phones import PERSONAL, phone_length, regions_of
from mlx_hybrid.governance.rules import Finding, in_force
from mlx_hybrid.governance.tables import CUES, said_before
from mlx_hybrid.records.fields import over_texts


class Span(NamedTuple):
    """A kind and where it stands in the text, in characters."""

    kind: str
    start: int
    end: int


ALL = ("email", "phone", "card", "iban", "ip", "secret")
VERSION, RELEASED = said_before("version", r"[^\n]{0,14}$"), said_before("released")
ADDRESS = said_before("address")
RESOLVERS = ("8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "4.2.2.2")
IBAN_LENGTHS = {pair[:2]: int(pair[2:]) for pair in CUES["iban"].split()}
MAX_CHECKED = 1_000_000  # characters that are searched for flags; redaction searches all
SPACES = (0xA0, *range(0x2000, 0x200C), 0x200E, 0x200F, *range(0x202A, 0x2030), 0x2060, 0x3000)
DASHES = (*range(0x2010, 0x2016), 0x2212, 0xFE58, 0xFE63)
PLAIN = {
    **{ord(c): str(unicodedata.digit(c)) for c in map(chr, range(0x80, 0x1FC00)) if c.isdecimal()},
    **{code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)},
    **dict.fromkeys(SPACES, " "),
    **dict.fromkeys(DASHES, "-"),
}
"""ASCII's digits, marks, spaces and dashes in place of those of other scripts and widths, one for one."""


def luhn(text: str) -> bool:
    """The check digit of card numbers (ISO/IEC 7812-1)."""
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [d if i % 2 == 0 else d * 2 - 9 * (d > 4) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def card_length(match: Any) -> int:
    digits = regex.sub(r"\D", "", match[0])
    return len(match[0]) if PERSONAL.cards.fullmatch(digits) and luhn(digits) and len(set(digits)) > 1 else 0


def iban_length(match: Any) -> int:
    """As many letters and digits as the country's have, where they pass the mod-97 check of ISO 13616."""
    places = [place for place, c in enumerate(match[0]) if c.isalnum()]
    wanted = IBAN_LENGTHS.get(match[0][:2].upper(), 99)
    if len(places) < wanted:
        return 0
    end = places[wanted - 1] + 1
    code = "".join(match[0][place] for place in places[:wanted])
    cut_short = match[0][end : end + 1].isalnum()
    return 0 if cut_short or int("".join(str(int(c, 36)) for c in code[4:] + code[:4])) % 97 != 1 else end


def ip_length(match: Any) -> int:
    """An address that can point at somebody: no version or section, and not of a private or documentation net."""
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return 0
    if address.version == 6:
        return len(match[0]) if address in ipaddress.ip_network("2000::/3") and address.is_global else 0
    before, after = match.string[max(0, match.start() - 40) : match.start()], match.string[match.end() :][:20]
    like = all(int(part) < 32 for part in match[0].split(".")) and match[0] not in RESOLVERS
    is_version = (
        VERSION.search(before) or RELEASED.match(after.lstrip()) or (like and not ADDRESS.search(before))
    )
    return len(match[0]) if address.is_global and not is_version else 0


def email_length(match: Any) -> int:
    name, _, domain = match[0].rpartition("@")
    return 0 if name in ("git", "hg", "svn") or PERSONAL.no_domain.fullmatch(domain) else len(match[0])


KINDS: tuple[tuple[str, regex.Pattern, Callable[[Any], int]], ...] = (
    ("email", PERSONAL.email, email_length),
    ("ip", PERSONAL.ipv4, ip_length),
    ("ip", PERSONAL.ipv6, ip_length),
    ("iban", PERSONAL.iban, iban_length),
    ("card", PERSONAL.card, card_length),
)


def secrets(text: str) -> Iterator[tuple[int, int]]:
    """(begin, end) of every key and password; of `password = x` the value alone."""
    if PERSONAL.long.search(text):
        yield from (match.span() for match in PERSONAL.key.finditer(text))
    if "://" in text:
        yield from (match.span() for match in PERSONAL.login.finditer(text))
    if "earer" in text or "uthorization" in text:
        yield from (m.span() for m in PERSONAL.bearer.finditer(text) if regex.search(r"\d", m[0]))
    if PERSONAL.says.search(text):
        yield from (m.span(part) for m in PERSONAL.named.finditer(text) if (part := password_part(m)))


def password_part(match: Any) -> str:
    """The group of a match that holds its password; empty for a type, a placeholder or the name of a variable."""
    part = "quoted" if match["quoted"] else "bare"
    is_word = part == "bare" and PERSONAL.a_word.fullmatch(match[part])
    return "" if is_word or PERSONAL.placeholder.fullmatch(match[part]) else part


def candidates(text: str, regions: tuple[str, ...]) -> Iterator[Span]:
    """Everything that may be personal; where two claim the same text the earlier has it."""
    yield from (Span("secret", *span) for span in secrets(text))
    has_digits = PERSONAL.some_digits.search(text)
    text = text.translate(PLAIN) if has_digits or "\uff20" in text else text
    for kind, pattern, length in KINDS:
        if "@" in text if kind == "email" else has_digits:
            for match in pattern.finditer(text):
                yield Span(kind, match.start(), match.start() + length(match))
    for match in PERSONAL.phone.finditer(text) if PERSONAL.seven_digits.search(text) else ():
        yield Span("phone", match.start(), match.start() + phone_length(match, regions))


def find_personal(text: str, regions: tuple[str, ...] = ()) -> list[Span]:
    """Every span, in order and without overlaps; telephone numbers without a country's code are of the regions."""
    taken: list[Span] = []
    for span in candidates(text, regions):
        free = all(span.end <= other.start or span.start >= other.end for other in taken)
        taken += [span] if free and span.end > span.start else []
    return sorted(taken, key=lambda span: span.start)


def flags(fields: dict, language: str = "") -> tuple[Finding, ...]:
    """One flag a kind, with the count and where each stands: the field, and the offset in it."""
    places: dict[str, list[str]] = {}
    regions = regions_of(fields.get("language") or language)

    def look(text: str, name: str) -> str:
        for span in find_personal(text[:MAX_CHECKED], regions):
            places.setdefault(span.kind, []).append(f"{name}:{span.start}")
        return text

    over_texts(fields, look)
    told = {kind: f"{len(found)} at {', '.join(found[:20])}" for kind, found in places.items()}
    return tuple(Finding(f"pii_{kind}", detail) for kind, detail in told.items())


def kinds_to_redact(config: Mapping[str, Any]) -> list[str]:
    """The kinds that settings of governance ask to be redacted."""
    rules = in_force(config.get("rules", {})) if config["redact"] else {}
    return [kind for kind in ALL if f"pii_{kind}" in rules]


def redact(text: str, regions: tuple[str, ...] = (), kinds: Collection[str] = ALL) -> str:
    """The text with `[EMAIL]`, `[PHONE]`, `[CARD]`, `[IBAN]`, `[IP]` or `[SECRET]` where one stood."""
    for span in reversed(find_personal(text, regions)):
        if span.kind in kinds:
            text = f"{text[: span.start]}[{span.kind.upper()}]{text[span.end :]}"
    return text


def redact_fields(fields: dict, language: str = "", kinds: Collection[str] = ALL) -> dict:
    """A record's fields with every text that is trained on redacted; identifiers and metadata stay."""
    regions = regions_of(fields.get("language") or language)
    return over_texts(fields, lambda text, _: redact(text, regions, kinds))

"""Personal data and secrets: found by shape and checksum, told by kind, count and offset, never by content."""

import ipaddress
from collections.abc import Callable
from typing import NamedTuple

import regex

from mlx_hybrid.governance.stages import Finding
from mlx_hybrid.records.fields import over_texts


class Span(NamedTuple):
    """A kind and where it stands in the text, in characters."""

    kind: str
    start: int
    end: int


EMAIL = regex.compile(r"(?<![\w.+-])[\w][\w.+-]{0,63}@(?:[\w-]{1,63}\.)+\p{L}{2,24}(?![\w@])")
IPV4 = regex.compile(
    r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.]*\d)"
)
IPV6 = regex.compile(r"(?<![\w:])(?:[0-9a-fA-F]{1,4}:){4,7}(?::?[0-9a-fA-F]{1,4}){1,3}(?![\w:])")
PHONE = regex.compile(r"(?<![\w+])(?:\+|00)[1-9]\d{0,2}[ .\-/]?(?:\(?\d{1,4}\)?[ .\-/]?){2,5}\d{2,4}(?!\w)")
CARD = regex.compile(r"(?<![\w.-])(?:4|5[1-5]|2[2-7]|3[47]|6(?:011|5))(?:[ -]?\d){11,17}(?![\w-])")
IBAN = regex.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?(?!\w)")
KEY = regex.compile(
    r"(?<!\w)(?:sk-(?:proj-|ant-)?[A-Za-z0-9_-]{20,}|(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,}"
    r"|github_pat_\w{22,}|hf_[A-Za-z0-9]{30,}|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[\w-]{35}"
    r"|glpat-[\w-]{20,}|npm_[A-Za-z0-9]{36}|[rs]k_live_[A-Za-z0-9]{16,}"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})(?!\w)"
    r"|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----[\s\S]*?(?:-----END (?:[A-Z]+ )?PRIVATE KEY-----|\Z)"
)
MAX_CHECKED = 1_000_000  # characters that are searched for flags; redaction searches all
CARD_LENGTHS = {"4": (13, 16, 19), "5": (16,), "2": (16,), "3": (15,), "6": (16, 19)}


def luhn(text: str) -> bool:
    """The check digit of card numbers (ISO/IEC 7812-1)."""
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [d if i % 2 == 0 else d * 2 - 9 * (d > 4) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def is_card(text: str) -> bool:
    digits = "".join(c for c in text if c.isdigit())
    return len(digits) in CARD_LENGTHS.get(digits[0], ()) and luhn(digits) and len(set(digits)) > 1


def is_iban(text: str) -> bool:
    """The mod-97 check of ISO 13616."""
    plain = text.replace(" ", "")
    if not 15 <= len(plain) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def is_public_ip(text: str) -> bool:
    """An address that can point at somebody: not one of a private, loopback, documentation or multicast net."""
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def is_phone(text: str) -> bool:
    """Eight to fifteen digits (E.164), and a number that exists where `phonenumbers` is installed to say."""
    if not 8 <= sum(c.isdigit() for c in text.removeprefix("00")) <= 15:
        return False
    try:
        import phonenumbers
    except ImportError:
        return True
    try:
        number = phonenumbers.parse("+" + text.removeprefix("00").removeprefix("+"), None)
    except phonenumbers.NumberParseException:
        return False
    return phonenumbers.is_possible_number(number)


KINDS: tuple[tuple[str, regex.Pattern, Callable[[str], bool]], ...] = (
    ("secret", KEY, bool),
    ("email", EMAIL, bool),
    ("iban", IBAN, is_iban),
    ("card", CARD, is_card),
    ("phone", PHONE, is_phone),
    ("ip", IPV4, is_public_ip),
    ("ip", IPV6, is_public_ip),
)


def find_personal(text: str) -> list[Span]:
    """Every span, in order and without overlaps; where two kinds claim the same text the earlier kind has it."""
    if not any(c in text for c in "@.:+-_0") and not any(c.isdigit() for c in text):
        return []
    taken: list[Span] = []
    for kind, pattern, confirms in KINDS:
        for match in pattern.finditer(text):
            free = all(match.end() <= other.start or match.start() >= other.end for other in taken)
            if free and confirms(match[0]):
                taken.append(Span(kind, match.start(), match.end()))
    return sorted(taken, key=lambda span: span.start)


def flags(fields: dict) -> tuple[Finding, ...]:
    """One flag a kind, with the count and where each stands: the field, and the offset in it."""
    places: dict[str, list[str]] = {}

    def look(text: str, name: str) -> str:
        for span in find_personal(text[:MAX_CHECKED]):
            places.setdefault(span.kind, []).append(f"{name}:{span.start}")
        return text

    over_texts(fields, look)
    return tuple(
        Finding(f"pii_{kind}", f"{len(found)} at {', '.join(found[:20])}") for kind, found in places.items()
    )


def redact(text: str) -> str:
    """The text with `[EMAIL]`, `[PHONE]`, `[CARD]`, `[IBAN]`, `[IP]` or `[SECRET]` where one stood."""
    for span in reversed(find_personal(text)):
        text = f"{text[: span.start]}[{span.kind.upper()}]{text[span.end :]}"
    return text


def redact_fields(fields: dict) -> dict:
    """A record's fields with every text that is trained on redacted; identifiers and metadata stay."""
    return over_texts(fields, lambda text, _: redact(text))

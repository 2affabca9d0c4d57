"""Personal data and secrets: found by shape and checksum, told by kind, count and offset, never by content."""

import ipaddress
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from itertools import chain
from locale import locale_alias
from typing import Any, NamedTuple

import phonenumbers as phones
import regex

from mlx_hybrid.governance.rules import CUES, MAY_BE, Finding, for_short, in_force, patterns, said_before
from mlx_hybrid.records.fields import over_texts
from mlx_hybrid.records.languages import card_code, parse_language


class Span(NamedTuple):
    kind: str
    start: int
    end: int


PERSONAL = patterns("personal")
ALL = ("email", "phone", "card", "iban", "ip", "secret")
VERSION, RELEASED = said_before("version", r"[^\n]{0,14}$"), said_before("released")
ADDRESS = said_before("address")
CALL, NUMBER, OTHER = (said_before(name) for name in ("call", "number", "other"))
SAYS = (":", "=", "：", " is ")  # between the word for a password and the password
MOST_GROUPS = 6
WIDE = 5  # regions of a language from which a number must look more like one
WINDOW = 32  # characters before a number in which a word says what it is
WORLD = tuple(CUES["regions"].split())
RESOLVERS = ("8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "4.2.2.2")
IBAN_LENGTHS = {pair[:2]: int(pair[2:]) for pair in CUES["iban"].split()}
MAX_CHECKED = 1_000_000  # characters that are searched for flags; redaction searches all
SPACES = (0xA0, *range(0x2000, 0x200C), 0x200E, 0x200F, *range(0x202A, 0x2030), 0x2060, 0x3000)
DASHES = (*range(0x2010, 0x2016), 0x2212, 0xFE58, 0xFE63)
# ASCII's digits, marks, spaces and dashes in place of those of other scripts and widths, one for one.
PLAIN = {ord(c): str(unicodedata.digit(c)) for c in map(chr, range(0x80, 0x1FC00)) if c.isdecimal()}
PLAIN |= {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
PLAIN |= dict.fromkeys(SPACES, " ") | dict.fromkeys(DASHES, "-")
# What keys are made of is one letter, all else a space.
KEYED = bytes(ord("k") if chr(c).isalnum() or chr(c) in "/+_-" else 32 for c in range(128)) + bytes(128)


def luhn(text: str) -> bool:
    """The check digit of card numbers (ISO/IEC 7812-1)."""
    digits = [int(c) for c in reversed(text) if c.isdigit()]
    return sum(d * 2 - 9 * (d > 4) if i % 2 else d for i, d in enumerate(digits)) % 10 == 0


def card_length(match: Any) -> int:
    digits = regex.sub(r"\D", "", match[0])
    return len(match[0]) if PERSONAL.cards.fullmatch(digits) and luhn(digits) and len(set(digits)) > 1 else 0


def iban_length(match: Any) -> int:
    """As many letters and digits as the country's have, where they pass the mod-97 check of ISO 13616."""
    places = [place for place, c in enumerate(match[0]) if c.isalnum()]
    wanted = IBAN_LENGTHS.get(match[0][:2].upper(), 99)
    if len(places) < wanted:
        return 0
    end, code = places[wanted - 1] + 1, [match[0][place] for place in places[:wanted]]
    number = int("".join(str(int(c, 36)) for c in code[4:] + code[:4]))
    return 0 if match[0][end : end + 1].isalnum() or number % 97 != 1 else end


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
    like = like and not ADDRESS.search(before)
    is_version = VERSION.search(before) or RELEASED.match(after.lstrip()) or like
    return len(match[0]) if address.is_global and not is_version else 0


def email_length(match: Any) -> int:
    name, _, domain = match[0].rpartition("@")
    return 0 if name in ("git", "hg", "svn") or PERSONAL.no_domain.fullmatch(domain) else len(match[0])


@lru_cache(1024)
def regions_of(language: str) -> tuple[str, ...]:
    """Where a language is spoken, by the locales that Python knows; of a tag with a region (`sw-KE`) that one."""
    if named := regex.search(r"[-_]([A-Za-z]{2})(?=[-_]|$)", language):
        return (named[1].upper(),)
    try:
        code = card_code(str(parse_language(language)))
    except ValueError:
        return ()
    return tuple(sorted({*regex.findall(rf"(?m)^{code}_([A-Z]{{2}})\b", "\n".join(locale_alias.values()))}))


def phone_length(match: Any, regions: tuple[str, ...]) -> int:
    """How many characters of a candidate are a telephone number; 0 for none."""
    written = match[0]
    if "+" in written:
        found = phones.PhoneNumberMatcher(written, None, phones.Leniency.POSSIBLE)
        return next((number.end for number in found if number.start <= 2), 0)
    before = match.string[max(0, match.start() - WINDOW) : match.start()].rpartition("\n")[2]
    said, other = (max((m.start() for m in cue.finditer(before)), default=-1) for cue in (CALL, OTHER))
    if PERSONAL.no_phone.match(written) or other > said:
        return 0
    if written.startswith("00") and is_number(f"+{written[2:]}", "ZZ", "valid"):
        return len(written)
    called = said >= 0 or bool(NUMBER.search(before))
    found = [len(written)]
    if called or written[0] in "0(":  # the whole, then without last groups of digits, up to four of them
        ends = reversed([match.end() for match in regex.finditer(r"\d+", written)])
        found = [end for end in ends if sum(c.isdigit() for c in written[end:]) <= 4 and end >= 7]
    return next((length for length in found if is_national(written[:length], regions, called=called)), 0)


def is_national(written: str, regions: tuple[str, ...], *, called: bool) -> bool:
    """Whether a number without its country's code is one of the record's regions, or of another and written so."""
    if called:
        return any(is_number(written, region, "valid") for region in chain(regions, WORLD))
    opened, groups, wide = written[0] in "0(", regex.findall(r"\d+", written), len(regions) > WIDE
    pairs = all(len(group) == 2 for group in groups) and len(regions) > 1
    odd = len(groups) > MOST_GROUPS or any(len(group) == 1 for group in groups[2:])
    if odd or PERSONAL.thousands.fullmatch(written) or (pairs and not opened):
        return False
    how = "grouped" if wide and not opened else "begun"
    if len(groups) == 1:
        how = "valid" if opened else "mobile" if len(written) >= 10 and not wide else ""
    world = WORLD if opened and len(groups) > 1 else ()
    tried = chain(((region, how) for region in regions if how), ((region, "grouped") for region in world))
    return any(is_number(written, *pair) for pair in tried)


@lru_cache(1 << 16)
def is_number(written: str, region: str, how: str) -> bool:
    """Whether `phonenumbers` holds it for a valid number there: of a mobile phone, or begun or grouped as there."""
    try:
        number = phones.parse(written, region)
    except phones.NumberParseException:
        return False
    region = region if region != "ZZ" else phones.region_code_for_number(number)
    valid = phones.is_valid_number_for_region(number, region)
    if not valid or how in ("valid", "mobile"):
        return valid and (how == "valid" or phones.number_type(number) == phones.PhoneNumberType.MOBILE)
    shown = phones.format_number(number, phones.PhoneNumberFormat.NATIONAL)
    own, usual = (regex.findall(r"\d+", text.replace("(0)", "")) for text in (written, shown))
    own = own[1:] if own[0] in ("0", str(number.country_code)) and len(own) > 1 else own
    own[0], usual[0] = own[0].lstrip("0"), usual[0].lstrip("0")
    return own[:1] == usual[:1] and (how == "begun" or own == usual)


# By pattern: how many digits it has at least, and how many characters of a match are personal; 0 for none.
LENGTHS = {"email": (0, email_length), "ipv4": (4, ip_length), "ipv6": (0, ip_length)}
LENGTHS |= {"iban": (2, iban_length), "card": (13, card_length)}


def secrets(text: str) -> Iterator[tuple[int, int]]:
    """(begin, end) of every key and password; of `password = x` the value alone."""
    raw = text.encode("utf-8", "replace")
    if b"k" * 16 in raw.translate(KEYED) or b"BEGIN " in raw:
        yield from (match.span() for match in PERSONAL.key.finditer(text))
    if "://" in text:
        yield from (match.span() for match in PERSONAL.login.finditer(text))
    if "earer" in text or "uthorization" in text:
        yield from (m.span() for m in PERSONAL.bearer.finditer(text) if any(map(str.isdecimal, m[0])))
    may_be = any(map(text.__contains__, SAYS)) and MAY_BE.named.search(text.casefold())
    for match in PERSONAL.named.finditer(text) if may_be else ():
        part = "quoted" if match["quoted"] else "bare"
        is_name = part == "bare" and PERSONAL.a_word.fullmatch(match[part])  # a type or a variable
        if not is_name and not PERSONAL.placeholder.fullmatch(match[part]):
            yield match.span(part)


def candidates(text: str, regions: tuple[str, ...]) -> Iterator[Span]:
    """Everything that may be personal; where two claim the same text the earlier has it."""
    yield from (Span("secret", *span) for span in secrets(text))
    if not MAY_BE.number_or_at.search(text):
        return
    text = text if text.isascii() else text.translate(PLAIN)
    digits = sum(map(text.count, "0123456789"))
    for name, (least, length) in LENGTHS.items():
        kind = "ip" if name.startswith("ipv") else name
        may_be = digits >= least and getattr(MAY_BE, name).search(text)
        for match in getattr(PERSONAL, name).finditer(text) if may_be else ():
            yield Span(kind, match.start(), match.start() + length(match))
    for match in PERSONAL.phone.finditer(text) if digits >= 7 and PERSONAL.seven_digits.search(text) else ():
        yield Span("phone", match.start(), match.start() + phone_length(match, regions))


@for_short
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

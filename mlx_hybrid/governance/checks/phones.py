"""Telephone numbers, told by `phonenumbers`: with a country's code anywhere, without one in the record's regions."""

from functools import lru_cache
from itertools import chain
from locale import locale_alias
from typing import Any

import regex

from mlx_hybrid.governance.tables import CUES, patterns, said_before
from mlx_hybrid.records.languages import card_code, parse_language

PERSONAL = patterns("personal")
CALL, NUMBER, OTHER = (said_before(name) for name in ("call", "number", "other"))
MOST_GROUPS = 6
WIDE = 5  # regions of a language from which a number must look more like one
WINDOW = 32  # characters before a number in which a word says what it is
WORLD = tuple(CUES["regions"].split())


@lru_cache(1024)
def regions_of(language: str) -> tuple[str, ...]:
    """Where a language is spoken, by the locales that Python knows; of a tag with a region (`sw-KE`) that one."""
    if named := regex.search(r"[-_]([A-Za-z]{2})(?=[-_]|$)", language):
        return (named[1].upper(),)
    try:
        code = card_code(str(parse_language(language)))
    except ValueError:
        return ()
    found = (regex.match(rf"{code}_([A-Z]{{2}})\b", locale) for locale in locale_alias.values())
    return tuple(sorted({match[1] for match in found if match}))


def phone_length(match: Any, regions: tuple[str, ...]) -> int:
    """How many characters of a candidate are a telephone number; 0 for none."""
    import phonenumbers

    written = match[0]
    if "+" in written:
        found = phonenumbers.PhoneNumberMatcher(written, None, phonenumbers.Leniency.POSSIBLE)
        return next((number.end for number in found if number.start <= 2), 0)
    before = match.string[max(0, match.start() - WINDOW) : match.start()].rpartition("\n")[2]
    said, other = (max((m.start() for m in cue.finditer(before)), default=-1) for cue in (CALL, OTHER))
    if PERSONAL.no_phone.match(written) or other > said:
        return 0
    if written.startswith("00") and is_number(f"+{written[2:]}", "ZZ", "valid"):
        return len(written)
    called = said >= 0 or bool(NUMBER.search(before))
    found = lengths(written) if called or written[0] in "0(" else [len(written)]
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
    if len(groups) == 1:
        how = "valid" if opened else "mobile" if len(written) >= 10 and not wide else ""
        return any(is_number(written, region, how) for region in regions if how)
    own = any(is_number(written, region, "grouped" if wide and not opened else "begun") for region in regions)
    return own or (opened and any(is_number(written, region, "grouped") for region in WORLD))


@lru_cache(1 << 16)
def is_number(written: str, region: str, how: str) -> bool:
    """Whether `phonenumbers` holds it for a valid number there: of a mobile phone, or begun or grouped as there."""
    import phonenumbers as phones

    try:
        number = phones.parse(written, region)
    except phones.NumberParseException:
        return False
    region = region if region != "ZZ" else phones.region_code_for_number(number)
    if not phones.is_valid_number_for_region(number, region):
        return False
    if how in ("valid", "mobile"):
        return how == "valid" or phones.number_type(number) == phones.PhoneNumberType.MOBILE
    shown = phones.format_number(number, phones.PhoneNumberFormat.NATIONAL)
    own, usual = (regex.findall(r"\d+", text.replace("(0)", "")) for text in (written, shown))
    own = own[1:] if own[0] in ("0", str(number.country_code)) and len(own) > 1 else own
    own[0], usual[0] = own[0].lstrip("0"), usual[0].lstrip("0")
    return own[:1] == usual[:1] and (how == "begun" or own == usual)


def lengths(written: str) -> list[int]:
    """The whole candidate, then without last groups of digits, up to four of them."""
    ends = [match.end() for match in regex.finditer(r"\d+", written)]
    return [end for end in reversed(ends) if sum(c.isdigit() for c in written[end:]) <= 4 and end >= 7]

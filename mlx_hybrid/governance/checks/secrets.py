"""Keys and passwords: the forms that services give theirs, and what follows a name such as `password`."""

import re
from collections.abc import Iterator
from typing import Any

import regex

from mlx_hybrid.governance.checks.cues import CUES

BLOCK = r"-----BEGIN (?P<what>[A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?)-----[\s\S]*?(?:-----END (?P=what)-----|\Z)"
KEY = regex.compile(
    rf"(?<![\p{{Latin}}\p{{N}}_/+])(?:{CUES['secret'].replace(', ', '|')})(?![\p{{Latin}}\p{{N}}_])|{BLOCK}"
)
LOGIN = regex.compile(r"(?<=[a-z]://[^\s:/@]{0,64}:)[^\s@/:]{3,}(?=@)", regex.IGNORECASE)
BEARER = regex.compile(
    r"(?<=\b(?:bearer|authorization: *(?:basic|token))\s+)[A-Za-z0-9._~+/-]{12,}=*", regex.IGNORECASE
)
NAMED = regex.compile(
    rf"(?:{CUES['password'].replace(', ', '|')})(?:\s+is)?[\"']?\s*(?::=|=>|[:=：]|(?<=is)\s)\s*"
    r"(?:(?P<quote>[\"'])(?P<quoted>[^\"'\n]{4,128})(?P=quote)"
    r"|(?P<bare>[^\s\"',;<>()\[\]{}]{4,127}[^\s\"',;.<>()\[\]{}]))",
    regex.IGNORECASE,
)
PLACEHOLDER = regex.compile(
    r"[*x•.…_-]+|.*[<>{}$%].*|.*(?:your[_ -]|placeholder|change.?me|redacted|environ|getenv|getpass|process\.).*|"
    r"(?:input|null|none|true|false|password|passwd|secret|token|string|str|text|required|optional|example)\W*",
    regex.IGNORECASE,
)
LONG = re.compile(r"[A-Za-z0-9/+_-]{16}|BEGIN ")
SAYS = re.compile(r"[:=：]| is ")


def secrets(text: str) -> Iterator[tuple[int, int]]:
    """(begin, end) of every key and password; of `password = x` the value alone."""
    if LONG.search(text):
        yield from (match.span() for match in KEY.finditer(text))
    if "://" in text:
        yield from (match.span() for match in LOGIN.finditer(text))
    if "earer" in text or "uthorization" in text:
        yield from (match.span() for match in BEARER.finditer(text) if re.search(r"\d", match[0]))
    if SAYS.search(text):
        yield from (match.span(part) for match in NAMED.finditer(text) if (part := told_in(match)))


def told_in(match: Any) -> str:
    """The group of a match that holds its password; empty for a type, a placeholder or the name of a variable."""
    part = "quoted" if match["quoted"] else "bare"
    value = match[part]
    if PLACEHOLDER.fullmatch(value):
        return ""
    is_word = regex.fullmatch(r"[\p{L}\p{M}.]+|[\p{L}_.]+\(?", value)
    return "" if part == "bare" and is_word else part

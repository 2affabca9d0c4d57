"""Made-up personal data with known spans: precision and recall, checksums, and redaction."""

import json
from pathlib import Path

import phonenumbers
import pytest
from governance.conftest import SENTENCES, govern_records, read_jsonl, said, write_jsonl

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.governance.checks.personal import find_personal, luhn, redact, regions_of
from mlx_hybrid.governance.govern import govern_files
from mlx_hybrid.records.record import load_records

ROWS = (Path(__file__).with_name("personal.tsv")).read_text(encoding="utf-8").splitlines()
TABLE = [tuple(row.split("\t")) for row in ROWS]
"""Kind (or none), language of the record, and its text, where what is to be found stands between ⟦ ⟧."""


def expected(marked: str) -> tuple[str, int, int]:
    return marked.replace("⟦", "").replace("⟧", ""), marked.find("⟦"), marked.find("⟧") - 1


@pytest.mark.parametrize(("kind", "language", "marked"), TABLE)
def test_found_whole_where_it_stands_and_nothing_else(kind, language, marked):
    text, begin, end = expected(marked)
    spans = find_personal(text, regions_of(language))
    assert spans == ([] if kind == "none" else [(kind, begin, end)])
    hidden = redact(text, regions_of(language))
    assert hidden == (text if kind == "none" else f"{text[:begin]}[{kind.upper()}]{text[end:]}")


@pytest.mark.parametrize("text", SENTENCES.values())
def test_sentences_hold_nothing_personal(text):
    assert find_personal(text) == []


def test_a_languages_regions():
    assert regions_of("sw") == regions_of("swh_Latn") == ("KE", "TZ")
    assert (regions_of("sw-UG"), regions_of("zh-Hant-TW"), regions_of("tlh")) == (("UG",), ("TW",), ())


SPOKEN = """
    US:en GB:en-GB FR:fr DE:de ES:es IT:it NL:nl SE:sv DK:da GR:el RO:ro HU:hu TR:tr RU:ru UA:uk IN:hi PK:ur BD:bn ID:id
    VN:vi TH:th CN:zh TW:zh-TW JP:ja KR:ko ZA:af NG:ha KE:sw TZ:sw ET:am EG:ar MA:ar SA:ar IR:fa IL:he BR:pt MX:es CO:es
"""
EXAMPLES = [
    (pair.split(":")[1], phonenumbers.example_number_for_type(pair[:2], kind))
    for pair in SPOKEN.split()
    for kind in (phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE)
]


@pytest.mark.parametrize(("before", "floor"), [("", 0.95), ("tel: ", 1)])
@pytest.mark.parametrize("written", ["NATIONAL", "INTERNATIONAL", "E164"])
def test_the_numbering_plans_own_examples_are_found_whole(before, floor, written):
    found = []
    for language, number in EXAMPLES:
        shown = phonenumbers.format_number(number, getattr(phonenumbers.PhoneNumberFormat, written))
        text = f"{before}{shown} x"
        found.append(redact(text, regions_of(language)) == f"{before}[PHONE] x")
    assert sum(found) >= floor * len(found)


def test_every_luhn_number_of_a_network_is_a_card_and_no_other():
    """Against the networks' published prefixes: JCB 3528 to 3589, UnionPay 62, Mastercard to 2720."""
    for prefix, is_card in (("3528", True), ("3589", True), ("3527", False), ("3590", False), ("6221", True),
                            ("2720", True), ("2721", False), ("6011", True), ("6012", False)):  # fmt: skip
        numbers = (f"{prefix}12345678901{check}" for check in range(10))
        (number,) = (number for number in numbers if luhn(number))
        assert bool(find_personal(f"Pay {number}.")) == is_card, prefix
    assert luhn("79927398713")
    assert not any(luhn(f"7992739871{digit}") for digit in "012456789")


MAIL, NUMBER = "jane.roe@example.org", 4111111111111111


def paid(arguments) -> dict:
    """A record whose answer is a tool call."""
    user, answer = said(user="Pay the bill.", assistant=None)
    return {"messages": [user, answer | {"tool_calls": [{"name": "pay", "arguments": arguments}]}]}


def test_a_kind_that_is_switched_off_is_neither_flagged_nor_redacted(tmp_path):
    path = write_jsonl(tmp_path / "raw.jsonl", [{"text": f"Ask {MAIL} or call +44 20 7946 0958."}])
    config = GovernanceConfig(only=("personal",), redact=True, rules={"pii_phone": "off"})
    govern_files([path], tmp_path / "out", config)
    (row,) = read_jsonl(tmp_path / "out" / "kept.jsonl")
    assert row["text"] == "Ask [EMAIL] or call +44 20 7946 0958."
    assert [flag["reason"] for flag in row["_gov"]["flags"]] == ["pii_email"]


ARGUMENTS = {"to": MAIL, f"cc {MAIL}": 1, "card": NUMBER, "note": ["call +44 20 7946 0958"], "urgent": True}


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        (
            {"prompt": "Say it in Swahili.", "completion": "Ni.", "source_text": f"Write to {MAIL}."},
            {"email"},
        ),
        ({"messages": said(system=f"You answer for {MAIL}.", user="Who?", assistant="Anna.")}, {"email"}),
        (paid(ARGUMENTS), {"email", "card", "phone"}),
        (paid(json.dumps(ARGUMENTS)), {"email", "card", "phone"}),
    ],
)
def test_what_is_flagged_and_what_is_redacted_are_the_same(tmp_path, fields, kinds):
    """In every text that is trained on, and from files as in memory."""
    path = write_jsonl(tmp_path / "raw.jsonl", [fields, {**fields, "id": 1}])
    settings = {"only": ("personal",)}
    told = govern_records(load_records([path]), GovernanceConfig(**settings))
    assert {flag.reason for flag in told.flags[0]} == {f"pii_{kind}" for kind in kinds}
    assert told.kept[0].fields == fields
    assert MAIL not in str(told.flags)
    hidden = govern_records(load_records([path]), GovernanceConfig(**settings, redact=True))
    written = json.dumps(hidden.kept[0].fields, ensure_ascii=False)
    assert not [mark for mark in (MAIL, str(NUMBER), "7946") if mark in written]
    assert {kind for kind in ("email", "card", "phone") if f"[{kind.upper()}]" in written} == kinds
    govern_files([path], tmp_path / "out", GovernanceConfig(**settings, redact=True))
    rows = read_jsonl(tmp_path / "out" / "kept.jsonl")
    assert [row.pop("_gov")["edits"] for row in rows] == [["redacted"]] * 2
    assert rows == [record.fields for record in hidden.kept]


def test_a_record_without_personal_data_is_not_edited(tmp_path):
    fields = paid('{ "amount":  5, "rate": NaN }')
    path = write_jsonl(tmp_path / "raw.jsonl", [fields])
    govern_files([path], tmp_path / "out", GovernanceConfig(only=("personal",), redact=True))
    (row,) = read_jsonl(tmp_path / "out" / "kept.jsonl")
    assert "edits" not in row["_gov"]
    assert row["messages"] == fields["messages"]

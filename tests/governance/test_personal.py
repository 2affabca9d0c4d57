"""Made-up personal data with known spans: precision and recall, checksums, and redaction."""

import json

import pytest
from governance.conftest import SENTENCES, chat_record, govern_records, read_jsonl, write_jsonl

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.governance.checks.personal import find_personal, luhn, redact
from mlx_hybrid.governance.govern import govern_files
from mlx_hybrid.records.record import load_records

PRESENT = [
    ("email", "jane.roe+news@mail.example.co.uk"),
    ("email", "дарья@пример.рф"),
    ("phone", "+44 20 7946 0958"),
    ("phone", "+49 (30) 901820"),
    ("phone", "+255 22 211 8000"),
    ("card", "4111 1111 1111 1111"),
    ("card", "5555-5555-5555-4444"),
    ("card", "378282246310005"),
    ("iban", "GB82 WEST 1234 5698 7654 32"),
    ("iban", "DE89370400440532013000"),
    ("ip", "8.8.4.4"),
    ("ip", "2001:4860:4860:0:0:0:0:8888"),
    ("secret", "sk-" + "a1B2" * 8),
    ("secret", "AKIA" + "ABCD1234" * 2),
    ("secret", "ghp_" + "x9" * 18),
    ("secret", "hf_" + "aB" * 17),
]
ABSENT = [
    "4111 1111 1111 1112", "12345678901234567890", "192.168.0.1", "127.0.0.1", "version 1.2.3.4.5", "10:30:45",
    "GB82 WEST 1234 5698 7654 33", "user@localhost", "1999-2004", "ISBN 978-3-16-148410-0", "3.14159265358979",
    "+1", "room 00 12", "a@b", "sk-short", "0000 0000 0000 0000", "1,600,000.00",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), PRESENT)
def test_found_at_its_place(kind, value):
    text = f"Write to {value}, if you can."
    (span,) = find_personal(text)
    assert span.kind == kind
    assert text[span.start : span.end] == value
    assert redact(text) == f"Write to [{kind.upper()}], if you can."


@pytest.mark.parametrize("value", [*ABSENT, *SENTENCES.values()])
def test_not_found(value):
    assert find_personal(f"It says {value} on the door.") == []


def test_luhn():
    assert luhn("79927398713")
    assert not any(luhn(f"7992739871{digit}") for digit in "012456789")


def test_redaction_is_asked_for_and_never_rejects():
    records = [
        chat_record("Who do I ask?", "Ask jane.roe@example.org or call +44 20 7946 0958.", language="en")
    ]
    told = govern_records(records, GovernanceConfig())
    assert told.kept == records
    assert sorted(flag.reason for flag in told.flags[0]) == ["pii_email", "pii_phone"]
    assert "jane" not in str(told.flags)
    hidden = govern_records(records, GovernanceConfig(redact=True))
    assert hidden.kept[0].completion() == "Ask [EMAIL] or call [PHONE]."
    assert records[0].completion().startswith("Ask jane")


MAIL, NUMBER = "jane.roe@example.org", 4111111111111111
ARGUMENTS = {
    "to": MAIL,
    f"cc {MAIL}": 1,
    "card": NUMBER,
    "note": ["call +44 20 7946 0958"],
    "urgent": True,
    "share": 0.5,
}


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        ({"prompt": "Say it in Swahili.", "completion": "Mwandikie.", "source_text": f"Write to {MAIL}."}, {"email"}),
        (
            {
                "messages": [
                    {"role": "system", "content": f"You answer for {MAIL}."},
                    {"role": "user", "content": "Who answers?"},
                    {"role": "assistant", "content": "The office does."},
                ]
            },
            {"email"},
        ),
        *(
            (
                {
                    "messages": [
                        {"role": "user", "content": "Pay the bill."},
                        {"role": "assistant", "content": None, "tool_calls": [{"name": "pay", "arguments": given}]},
                    ]
                },
                {"email", "card", "phone"},
            )
            for given in (ARGUMENTS, json.dumps(ARGUMENTS))
        ),
    ],
)  # fmt: skip
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
    calls = [{"name": "pay", "arguments": '{ "amount":  5, "rate": NaN }'}]
    messages = [
        {"role": "user", "content": "Pay it."},
        {"role": "assistant", "content": "", "tool_calls": calls},
    ]
    path = write_jsonl(tmp_path / "raw.jsonl", [{"messages": messages}])
    govern_files([path], tmp_path / "out", GovernanceConfig(only=("personal",), redact=True))
    (row,) = read_jsonl(tmp_path / "out" / "kept.jsonl")
    assert "edits" not in row["_gov"]
    assert row["messages"] == messages

"""Made-up personal data with known spans: precision and recall, checksums, and redaction."""

import pytest
from governance.conftest import SENTENCES, chat_record

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.governance.personal import find_personal, luhn, redact
from mlx_hybrid.governance.pipeline import govern_records

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

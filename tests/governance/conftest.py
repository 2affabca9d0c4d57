"""Sentences written for these tests, and what turns them into records and files."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.errors import DataError
from mlx_hybrid.files import sha256_of
from mlx_hybrid.governance.checks.personal import redact_fields
from mlx_hybrid.governance.govern import describe_alarms
from mlx_hybrid.governance.inspection import Inspector, Ledger, count
from mlx_hybrid.governance.rules import Finding
from mlx_hybrid.records.record import Fault, Record

SENTENCES = {
    "eng_Latn": "The library opens at nine in the morning and closes late in the evening on weekdays.",
    "deu_Latn": "Die Bibliothek öffnet morgens um neun und schließt an Werktagen spät am Abend für alle.",
    "fra_Latn": "La bibliothèque ouvre à neuf heures du matin et ferme tard le soir pendant la semaine.",
    "spa_Latn": "La biblioteca abre a las nueve de la mañana y cierra tarde por la noche entre semana.",
    "swh_Latn": "Maktaba hufunguliwa saa tatu asubuhi na kufungwa usiku sana siku za kazi kila wiki.",
    "rus_Cyrl": "Библиотека открывается в девять утра и закрывается поздно вечером в будние дни недели.",
    "ell_Grek": "Η βιβλιοθήκη ανοίγει στις εννέα το πρωί και κλείνει αργά το βράδυ τις καθημερινές.",
    "arb_Arab": "تفتح المكتبة أبوابها في التاسعة صباحا وتغلق في وقت متأخر من المساء في أيام العمل.",
    "hin_Deva": "पुस्तकालय सुबह नौ बजे खुलता है और सप्ताह के दिनों में देर शाम को बंद होता है।",
    "tha_Thai": "ห้องสมุดเปิดเวลาเก้าโมงเช้าและปิดดึกในวันธรรมดาทุกสัปดาห์",
    "zho_Hans": "图书馆工作日早上九点开门，晚上很晚才关门，周末只开放半天。",
    "tur_Latn": "Kütüphane hafta içi sabah dokuzda açılır ve akşam geç saatlerde kapanır, herkes girebilir.",
}


def text_record(text: str, line: int = 1, **fields) -> Record:
    return Record({"text": text, **fields}, "data.jsonl", line)


def said(**turns) -> list[dict]:
    """Messages, one a role."""
    return [{"role": role, "content": content} for role, content in turns.items()]


def text_records(texts: Sequence[str], **fields) -> list[Record]:
    """Numbered from 0."""
    return [text_record(text, line, **fields) for line, text in enumerate(texts)]


def chat_record(prompt: str, completion: str, line: int = 1, **fields) -> Record:
    return Record({"prompt": prompt, "completion": completion, **fields}, "chat.jsonl", line)


class Rejection(NamedTuple):
    record: Record | Fault
    language: str
    stage: str
    reason: str
    detail: str
    match: str


class Governed(NamedTuple):
    """Records on either side; `flags` are in the order of `kept`."""

    kept: list[Record]
    rejected: list[Rejection]
    flags: list[tuple[Finding, ...]]
    counts: Counter
    alarms: list[str]


def govern_records(
    records: Sequence[Record | Fault], config: GovernanceConfig, *, stop: bool = True
) -> Governed:
    """The stages on records that stand in no file."""
    ledger = Ledger(config)
    ledger.add(Inspector(config).inspect(records))
    ledger.decide()
    if ledger.alarms and stop:
        raise DataError(describe_alarms(ledger.alarms, config))
    kept, rejected, flags = [], [], []
    for record, item in zip(records, ledger.items, strict=True):
        if item.decision:
            rejected.append(Rejection(record, item.language, *item.decision))
            continue
        redacted = redact_fields(record.fields) if config.redact else record.fields
        kept.append(Record(redacted, record.path, record.line))
        flags.append(item.flags)
    return Governed(kept, rejected, flags, Counter(count(ledger.items)), ledger.alarms)


def write_jsonl(path: Path, rows: list) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A small file with one fault of several kinds."""
    good = [{"text": text, "language": code, "id": code} for code, text in SENTENCES.items()]
    faults = [
        "not json",
        {"text": SENTENCES["eng_Latn"], "language": "sw"},
        {"text": SENTENCES["eng_Latn"], "language": "en"},
        {"text": SENTENCES["eng_Latn"].replace("nine", "ten"), "language": "en"},
        {"text": "", "language": "en"},
        {"text": SENTENCES["fra_Latn"].encode().decode("cp1252"), "language": "fr"},
        {"text": "Write to jane.roe@example.org when the room is closed, and wait.", "language": "en"},
    ]
    return write_jsonl(tmp_path / "raw.jsonl", good + faults)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in folder.iterdir()}

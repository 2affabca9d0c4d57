"""Planted faults, and what governance makes of them."""

from collections import Counter

import pytest
from governance.conftest import govern_records

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.evaluation.sets import from_fields
from mlx_hybrid.study.noise import KINDS, asked, plant_noise

TEXTS = {
    "en": "The {} was closed this morning because the snow had covered every road in the valley.",
    "de": "Die {} blieb heute Morgen geschlossen, weil der Schnee alle Straßen im Tal bedeckt hatte.",
}
NOUNS = [
    "school",
    "bakery",
    "station",
    "library",
    "market",
    "harbour",
    "museum",
    "garden",
    "office",
    "theatre",
]


@pytest.fixture
def clean() -> list[dict]:
    return [
        {"id": f"{code}{n}", "group": n, "language": code, "prompt": text.format(noun), "completion": f"{n}"}
        for code, text in TEXTS.items()
        for n, noun in enumerate(NOUNS)
    ]


def test_the_share_is_of_the_whole_and_every_kind_is_there(clean):
    mixed = plant_noise(clean, 0.5, seed=3)
    kinds = Counter(record.get("planted") for record in mixed)
    assert kinds[None] == len(clean)
    assert sum(kinds.values()) == 2 * len(clean)
    assert set(kinds) == {None, *KINDS}


def test_the_same_seed_plants_the_same_and_the_clean_records_stay(clean):
    assert plant_noise(clean, 0.3, seed=1) == plant_noise(clean, 0.3, seed=1)
    assert plant_noise(clean, 0.3, seed=1) != plant_noise(clean, 0.3, seed=2)
    assert [record for record in plant_noise(clean, 0.3, seed=1) if "planted" not in record] == clean
    assert plant_noise(clean, 0.0, seed=1) == clean
    assert (
        plant_noise(clean, 0.4, seed=0)[: len(clean)] == clean
    )  # so governance keeps a record, not its copies


def test_planted_records_are_worse_than_clean_ones_to_governance(clean):
    records = from_fields(plant_noise(clean, 0.4, seed=0), "train")
    kept = govern_records(records, GovernanceConfig(max_reject_share=1.0)).kept
    share = {p: sum(("planted" in r.fields) == p for r in kept) for p in (True, False)}
    planted = sum("planted" in record.fields for record in records)
    assert share[True] / planted < 0.5
    assert share[False] >= 0.5 * len(clean)  # sentences of one mould may repeat each other


def test_a_fault_is_one_in_every_planted_record(clean):
    ascii_only = [r | {"prompt": r["prompt"].encode("ascii", "ignore").decode()} for r in clean]
    english = clean[:10]
    for records, missing in ((clean, set()), (ascii_only, {"mojibake"}), (english, {"language", "mojibake"})):
        texts = {record["prompt"] for record in records}
        planted = [r for r in plant_noise(records, 0.5, seed=0) if "planted" in r]
        assert {record["planted"] for record in planted} == {*KINDS} - missing
        assert not [r for r in planted if r["planted"] != "language" and r["prompt"] in texts]


def test_chat_records_keep_their_answer():
    turns = [{"role": "user", "content": "What is this? A tree."}, {"role": "assistant", "content": "plant"}]
    records = [{"id": code, "language": code, "messages": turns} for code in ("en", "de")]
    for record in plant_noise(records, 0.5, seed=0):
        assert record["messages"][-1]["content"] == "plant"
        assert asked(record)


def test_a_line_without_spaces_is_not_repeated_whole():
    line = "雪覆盖了山谷里所有的道路因此学校今天早上关闭了" * 3
    records = [{"id": "a", "language": "zh", "prompt": line, "completion": "x"}] * 20
    planted = [r for r in plant_noise(records, 0.5, seed=0) if r.get("planted") == "repetition"]
    assert planted
    for record in planted:
        assert line[-12:] in record["prompt"]
        assert len(record["prompt"]) < 600

"""The records of a comparison: what is held back, what is left to train on, and planted faults."""

import json
from collections import Counter
from pathlib import Path

import pytest
from governance.conftest import govern_records

from mlx_hybrid.config import Config, GovernanceConfig, load_config
from mlx_hybrid.evaluation.sets import from_fields
from mlx_hybrid.study.data import KINDS, asked, freeze_data, plant_noise
from mlx_hybrid.study.plan import governance_values

NOUNS = ("school", "mill", "barn", "shop", "farm", "port", "pier", "bank", "hall", "zoo", "museum", "church")
ENDINGS = (
    "stood empty while heavy rain fell over the northern valley",
    "opened two hours late because a water pipe burst",
    "welcomed forty children from the village across the lake",
    "will be painted green before the summer festival",
)


def row(number: int, text: str, **more) -> dict:
    return {"id": f"r{number}", "language": "en", "prompt": text, "completion": f"answer {number}"} | more


def clean(count: int = 12) -> list[dict]:
    return [
        row(n, f"Yesterday the {NOUNS[n]} number {n * 37} {ENDINGS[n % 4]}, said {NOUNS[-1 - n]} {n * 11}.")
        for n in range(count)
    ]


FAULTY = [
    row(20 + n, f"Tell me of {word}.", completion=f"{word} " * 60)
    for n, word in enumerate(("stone", "cloud", "bread", "music"))
]


def config_of(tmp_path: Path, rows: list[dict], setting: str = "on") -> Config:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in rows))
    values = {"data.paths": [str(path)], "data.valid_share": 0.2, "data.test_share": 0.2}
    return load_config(None, (), values | governance_values(setting))


def frozen(tmp_path: Path, config: Config) -> dict[str, list[dict]]:
    freeze_data(config, tmp_path / "data", noise=0.0)
    return {
        name: [json.loads(line) for line in (tmp_path / "data" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "valid", "test")
    }


def ids(rows: list[dict]) -> set[str]:
    return {record["id"] for record in rows}


def test_what_governance_would_set_aside_is_trained_on_ungoverned_and_never_measured_on(tmp_path):
    parts = frozen(tmp_path, config_of(tmp_path, clean() + FAULTY))
    assert ids(FAULTY) <= ids(parts["train"])
    assert not ids(FAULTY) & ids(parts["valid"] + parts["test"])
    assert sum(map(len, parts.values())) == 16
    assert parts["valid"]
    assert parts["test"]


@pytest.mark.parametrize("setting", ["on", "off"])
def test_training_shares_no_group_with_what_is_held_back(setting, tmp_path):
    """A faulty record of a group goes with its group, whether or not it was kept itself."""
    rows = [record | {"group": n} for n, record in enumerate(clean())]
    rows += [record | {"group": n, "id": f"f{n}"} for n, record in enumerate(FAULTY * 3)]
    parts = frozen(tmp_path, config_of(tmp_path, rows, setting))
    groups = {name: {record["group"] for record in own} for name, own in parts.items()}
    assert not groups["train"] & (groups["valid"] | groups["test"])
    assert [r["id"] for r in parts["train"] if r["id"].startswith("f")]


def test_a_copy_of_a_held_back_record_is_not_trained_on(tmp_path):
    copies = [record | {"id": f"copy-{record['id']}"} for record in clean()]
    near = [record | {"id": f"near-{record['id']}", "prompt": record["prompt"] + " ."} for record in clean()]
    parts = frozen(tmp_path, config_of(tmp_path, clean() + copies + near))
    held = ids(parts["valid"] + parts["test"])
    trained = ids(parts["train"])
    assert held
    assert held == ids(clean()) - trained
    for name in ids(clean()):
        assert ({f"copy-{name}", f"near-{name}"} <= trained) == (name not in held)


TEXTS = {
    "en": "The {} was closed this morning because the snow had covered every road in the valley.",
    "de": "Die {} blieb heute Morgen geschlossen, weil der Schnee alle Straßen im Tal bedeckt hatte.",
}
BILINGUAL = [
    {"id": f"{code}{n}", "group": n, "language": code, "prompt": text.format(noun), "completion": f"{n}"}
    for code, text in TEXTS.items()
    for n, noun in enumerate(NOUNS[:10])
]


def test_the_share_is_of_the_whole_and_every_kind_is_there():
    mixed = plant_noise(BILINGUAL, 0.5, seed=3)
    kinds = Counter(record.get("planted") for record in mixed)
    assert kinds[None] == len(BILINGUAL)
    assert sum(kinds.values()) == 2 * len(BILINGUAL)
    assert set(kinds) == {None, *KINDS}


def test_the_same_seed_plants_the_same_and_the_clean_records_stay():
    assert plant_noise(BILINGUAL, 0.3, seed=1) == plant_noise(BILINGUAL, 0.3, seed=1)
    assert plant_noise(BILINGUAL, 0.3, seed=1) != plant_noise(BILINGUAL, 0.3, seed=2)
    assert [record for record in plant_noise(BILINGUAL, 0.3, seed=1) if "planted" not in record] == BILINGUAL
    assert plant_noise(BILINGUAL, 0.0, seed=1) == BILINGUAL
    assert (
        plant_noise(BILINGUAL, 0.4, seed=0)[:20] == BILINGUAL
    )  # so governance keeps a record, not its copies


def test_planted_records_are_worse_than_clean_ones_to_governance():
    records = from_fields(plant_noise(BILINGUAL, 0.4, seed=0), "train")
    kept = govern_records(records, GovernanceConfig(max_reject_share=1.0)).kept
    share = {p: sum(("planted" in r.fields) == p for r in kept) for p in (True, False)}
    planted = sum("planted" in record.fields for record in records)
    assert share[True] / planted < 0.5
    assert share[False] >= 0.5 * len(BILINGUAL)  # sentences of one mould may repeat each other


def test_a_fault_is_one_in_every_planted_record():
    ascii_only = [r | {"prompt": r["prompt"].encode("ascii", "ignore").decode()} for r in BILINGUAL]
    english = BILINGUAL[:10]
    for records, missing in (
        (BILINGUAL, set()),
        (ascii_only, {"mojibake"}),
        (english, {"language", "mojibake"}),
    ):
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

"""The records of a comparison: what is held back, and what is left to train on before anyone governs it."""

import json
from pathlib import Path

import pytest

from mlx_hybrid.config import Config, load_config
from mlx_hybrid.study.data import freeze_data
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

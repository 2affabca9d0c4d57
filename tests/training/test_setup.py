"""What a run is known by: its records, template and settings, and not the day."""

from datetime import date

import pytest
from chat_templates import TEMPLATES
from toys import byte_tokenizer, wrapped

from mlx_hybrid.config import build_config
from mlx_hybrid.errors import DataError
from mlx_hybrid.records.record import Record, Split
from mlx_hybrid.training.setup import data_identity, tokenised

CONFIG = build_config({}, "test")


def chats(answer: str = "yes", **turn) -> Split:
    turns = [{"role": "user", "content": "is it?"}, {"role": "assistant", "content": answer, **turn}]
    return Split([Record({"messages": turns}, "d", 1)], [], [])


def identity(split: Split, day: int = 1, template: str = "dated", **settings) -> tuple[str, list[int]]:
    tokenizer = wrapped(byte_tokenizer(TEMPLATES[template]), date=date(2026, 1, day), **settings)
    made = tokenised(CONFIG, split, tokenizer)
    return data_identity((part.examples for part in made), tokenizer), made[0].examples[0].tokens


def test_the_day_changes_the_tokens_and_not_the_identity():
    (first, today), (second, tomorrow) = identity(chats(), 1), identity(chats(), 2)
    assert today != tomorrow
    assert first == second


@pytest.mark.parametrize(
    "other",
    [
        {"split": chats("yes.")},
        {"split": chats(), "template": "chatml"},
        {"split": chats(), "system": "fold"},
        {"split": chats(), "options": {"today": 1}},
    ],
    ids=["a letter", "the template", "the system turn", "an option"],
)
def test_a_changed_record_or_setting_changes_the_identity(other):
    assert identity(chats())[0] != identity(**other)[0]


def test_records_that_are_all_set_aside_stop_the_run_with_their_reason():
    with pytest.raises(DataError, match="No training record is left: every answer is empty, or marked"):
        identity(chats(weight=0))

"""The stages together: order, choice, protection of small languages, translations."""

import random

import pytest
from governance.conftest import SENTENCES, chat_record, govern_records, text_record, text_records
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.governance.checks.quality import numbers_differ
from mlx_hybrid.governance.rules import active_stages
from mlx_hybrid.records.record import Fault
from mlx_hybrid.study.plan import governance_values

ENGLISH, SWAHILI = SENTENCES["eng_Latn"], SENTENCES["swh_Latn"]


def config(**settings) -> GovernanceConfig:
    return GovernanceConfig(**{"max_reject_share": 1.0, **settings})


def varied(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.sample(ENGLISH.lower().split(), 12)) + f" {rng.random()}" for _ in range(count)]


def test_nothing_vanishes_and_counts_add_up():
    records = [
        *(text_record(text, i, language=code) for i, (code, text) in enumerate(SENTENCES.items())),
        Fault("data.jsonl", 50, "bad_json", "not JSON", b"{"),
        text_record(ENGLISH, 51, language="sw"),
        text_record(ENGLISH, 52, language="en"),
        chat_record(ENGLISH, ENGLISH, 53, language="en"),
    ]
    result = govern_records(records, config())
    assert len(result.kept) + len(result.rejected) == len(records)
    assert result.counts.total() == len(records)
    assert [(r.stage, r.reason) for r in result.rejected] == [
        ("structure", "bad_json"), ("language", "lang_mismatch"),
        ("exact", "exact_dup"), ("quality", "answer_is_prompt"),
    ]  # fmt: skip
    assert result.counts[("exact", "eng_Latn", "exact_dup")] == 1
    assert govern_records(records, config()) == result


def test_stages_can_be_chosen():
    records = [text_record(ENGLISH, 1, language="sw"), text_record(ENGLISH, 2, language="sw")]
    for chosen, stages in (
        ({"only": ("exact",)}, ["exact"]),
        ({"skip": ("language",)}, ["exact"]),
        ({"skip": ("exact", "near")}, ["language"] * 2),
    ):
        assert [r.stage for r in govern_records(records, config(**chosen)).rejected] == stages


@pytest.mark.parametrize(
    "settings",
    [
        {"only": ("nearr",)}, {"skip": ("x",)}, {"languages": ("klingon",)}, {"near_threshold": 0.0}, {"workers": -1},
        {"engine": "guess"}, {"max_reject_share": 2.0}, {"against": ("nowhere.jsonl",)},
    ],
)  # fmt: skip
def test_settings_that_cannot_be(settings):
    with pytest.raises(ConfigError):
        govern_records([], config(**settings))


IDLE = [
    ("language", {"languages": ("sw",)}), ("language", {"engine": "fasttext:lid.176"}),
    ("licence", {"licences": ("mit",)}), ("overlap", {"against": ("nowhere.jsonl",)}),
    ("overlap", {"overlap_threshold": 0.5}), ("personal", {"redact": True}),
    ("near", {"near_threshold": 0.7}),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "settings"), IDLE)
def test_a_setting_without_its_stage_is_refused(stage, settings):
    """It would be accepted and do nothing."""
    (key,) = settings
    for chosen in ({"skip": (stage,)}, {"only": ("exact", "unicode")}):
        with pytest.raises(ConfigError, match=rf"governance\.{key} .*stage {stage} "):
            active_stages(config(**settings, **chosen))
    assert stage in active_stages(config(**settings, only=("exact", stage)))
    assert stage in active_stages(config(**settings))


@pytest.mark.parametrize("setting", ["on", "to-exact", "to-near", "quality", "language", "licence"])
def test_a_comparison_of_stages_drops_what_they_have_no_use_for(setting):
    everything = {key: value for _, settings in IDLE for key, value in settings.items()}
    values = {k.removeprefix("governance."): v for k, v in governance_values(setting).items()}
    del values["enabled"]
    assert set(values.get("only", ())) <= set(active_stages(GovernanceConfig(**{**everything, **values})))


def test_small_languages_are_protected():
    records = text_records([ENGLISH] * 6, language="sw") + text_records(varied(50), language="en")
    told = "language would take 6 of 6 swh_Latn records, most for lang_mismatch"
    with pytest.raises(DataError, match=told):
        govern_records(records, GovernanceConfig())
    assert govern_records(records, GovernanceConfig(), stop=False).alarms
    assert not govern_records(records, config()).alarms
    copies = [text_record(SWAHILI, 1, language="sw"), text_record(SWAHILI, 2, language="sw")]
    with pytest.raises(DataError, match="left with 1 of 2"):
        govern_records(copies, config(min_kept=2))


def test_what_is_asked_for_raises_no_alarm():
    records = [text_record(text, i, language="en", licence="cc0") for i, text in enumerate(varied(20))]
    result = govern_records(records, GovernanceConfig(languages=("sw",)))
    assert {r.reason for r in result.rejected} == {"lang_not_allowed"}
    assert not govern_records(records, GovernanceConfig(licences=("mit",))).kept
    assert len(govern_records(records, config(licences=("cc0",))).kept) == 20


def test_translations():
    rng = random.Random(1)
    pairs = [(text, text[: int(len(text) * rng.uniform(0.9, 1.0))][::-1]) for text in varied(250)]
    pairs += [(ENGLISH, ENGLISH.upper()), (ENGLISH, "Ndiyo.")]
    pairs += [("Open 1987 to 2005, they say", "Wazi miaka mingi sana")]
    declared = {"language": "sw", "source_language": "en"}
    records = [chat_record(*pair, line, **declared) for line, pair in enumerate(pairs)]
    result = govern_records(records, config(only=("parallel",)))
    found = [(r.record.line, r.reason) for r in result.rejected]
    assert found == [(250, "copy_source"), (251, "length_ratio")]
    assert [flag.reason for flag in result.flags[-1]] == ["number_mismatch"]
    assert numbers_differ("im Jahr 1987", "в १९८७ году") == ""
    assert numbers_differ(
        "im Jahr 1987", "in \U0001ccf1\U0001ccf2"
    )  # digits that Python has no value for yet


@pytest.mark.parametrize(
    ("prompt", "answer", "source", "reasons"),
    [
        ("Translate: Hello there!", "hello there", "Hello there.", ["copy_source"]),
        ("Translate: !!!", "!!!", "!!!", ["copy_source"]),
        ("Hello there", "Hello there", "...", []),
        ("Hello there", "Hello there", "", []),
    ],
)
def test_a_copy_is_one_of_the_source_that_a_record_names(prompt, answer, source, reasons):
    declared = {"language": "sw", "source_language": "en", "source_text": source}
    result = govern_records([chat_record(prompt, answer, 1, **declared)], config(only=("parallel",)))
    assert [r.reason for r in result.rejected] == reasons


ANY = st.text(st.characters(codec=None), max_size=60)


CODES = st.sampled_from([None, "en", "zh", "x", "arb_Latn"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(ANY, ANY, CODES), min_size=1, max_size=6))
def test_any_text_gets_an_answer(rows):
    records = [chat_record(a, b or "x", i, language=code, label=a[:1]) for i, (a, b, code) in enumerate(rows)]
    result = govern_records(records, config(redact=True))
    assert len(result.kept) + len(result.rejected) == len(rows)

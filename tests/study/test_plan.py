"""Plans: what every cell is made of, what would not compare like with like, and which rates are tried."""

import math
from pathlib import Path

import pytest

from mlx_hybrid.config import HouseholderConfig, LowRankConfig
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.study.plan import (
    ADDED,
    ROUNDS,
    Cell,
    Plan,
    check_plan,
    final_cells,
    governance_settings,
    tune,
)


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "source.yaml"
    path.write_text(
        "data: {paths: [here]}\ntrain: {learning_rate: 4e-3, orthogonal_learning_rate: 1e-3}\n"
        "adapter: {targets: [q_proj], dropout: 0.1}\n"
    )
    return path


def plan(source: Path, **changes) -> Plan:
    values = {"methods": ("lora", "hybrid"), "seeds": 2, "governance": ("own",), **changes}
    return Plan(source=source, **values)


def test_a_cell_is_its_methods_preset_at_its_rate_and_seed(source):
    made = plan(source).config(Cell("hybrid", "own", 2e-3, 5), {"data.paths": ["there"]})
    assert (made.method, made.seed, made.evaluate) == ("hybrid", 5, False)
    assert made.train.learning_rate == 2e-3
    assert made.train.orthogonal_learning_rate == 5e-4
    rotation, low_rank = HouseholderConfig(), LowRankConfig(rank=8, dropout=0.1)
    assert (made.adapter.rotation, made.adapter.low_rank) == (rotation, low_rank)
    assert (made.adapter.mixing, made.adapter.targets) == ("gradient", ("q_proj",))
    assert made.data.paths == ("there",)


def test_cells_have_names_of_their_own_and_seeds_go_round_first(source):
    own = plan(source, governance=("off", "on"))
    cells = final_cells(own, {"lora": (1e-3, 0), "hybrid": (5e-3, 0)})
    assert len({cell.name for cell in cells}) == len(cells) == 8
    assert {cell.method for cell in cells[:2]} == {"lora", "hybrid"}
    assert all(cell.seed == 0 for cell in cells[:4])
    assert {cell.rate for cell in cells if cell.method == "hybrid"} == {5e-3}


def test_governance_in_steps_adds_one_stage_at_a_time(source):
    names = governance_settings(("steps",))
    assert names == ("off", *(f"to-{stage}" for stage in ADDED))
    configs = [plan(source).config(Cell("lora", name, 1e-3, 0), {}).governance for name in names]
    assert not configs[0].enabled
    for number, config in enumerate(configs[1:], 1):
        assert set(config.only) == {"unicode", *ADDED[:number]}
    assert governance_settings(()) == ("own",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ("lora", "hybird")}, 'unknown method "hybird".*"hybrid"'),
        ({"methods": ("lora", "lora")}, "twice"),
        ({"governance": ("langauge",)}, '"language"'),
        ({"overrides": ("adapter.low_rank.rank=3",)}, "adapter.low_rank.rank is set for every method"),
    ],
    ids=["method", "twice", "governance", "rank"],
)
def test_a_plan_that_cannot_be_is_one_sentence(source, changes, words):
    with pytest.raises(ConfigError, match=words):
        check_plan(plan(source, **changes))


def test_terms_change_with_what_is_measured_and_not_with_what_may_be_added(source):
    first = plan(source).terms()
    assert plan(source, seeds=9, methods=("hra",), rates=(1e-2,)).terms() == first
    assert plan(source, limit=5).terms() != first
    assert plan(source, pivot="en").terms() == first != plan(source, pivot="de").terms()
    assert plan(source, overrides=("train.epochs=9",)).terms() != first


RATES = (1e-4, 3e-4, 1e-3)


@pytest.mark.parametrize(
    ("lowest", "count"),
    [
        ({"inside": 3e-4, "as well": 2.9e-4}, 3),
        ({"inside": 3e-4, "above": 5e-3}, 5),
        ({"below": 2e-5, "above": 5e-3, "inside": 4e-4}, 7),
        ({"far": 10.0, "inside": 3e-4}, len(RATES) + ROUNDS),
    ],
    ids=["none at an end", "above", "both ways", "too far"],
)
def test_every_method_has_as_many_trials_and_ends_are_passed(lowest, count):
    asked = []

    def losses(wanted):
        asked.extend(wanted)
        return [abs(math.log(rate / lowest[method])) for method, (rate, _) in wanted]

    tried = tune(list(lowest), RATES, (), losses)
    assert len(asked) == len(set(asked)) == count * len(lowest)  # nothing twice
    assert {len(own) for own in tried.values()} == {count}
    for method, own in tried.items():
        (chosen, batch), rates = min(own, key=own.get), {rate for rate, _ in own}
        assert (own[chosen, batch], batch) == (min(own.values()), 0)
        assert {*RATES} <= rates
        if method == "far":
            assert chosen == max(rates)
        else:
            assert min(rates) < chosen < max(rates)
            assert abs(math.log(chosen / lowest[method])) <= math.log(3.4) / 2


def test_batch_sizes_are_chosen_with_rates_and_grow_past_an_end():
    """A loss that is least at 3e-4 and batches of 16, of which 4 and 8 are asked for."""

    def losses(wanted):
        return [abs(math.log(rate / 3e-4)) + abs(math.log2(batch / 16)) for _, (rate, batch) in wanted]

    tried = tune(["one", "two"], RATES, (4, 8), losses)
    assert tried["one"] == tried["two"]
    assert min(tried["one"], key=tried["one"].get) == (3e-4, 16)
    assert {batch for _, batch in tried["one"]} == {4, 8, 16, 32}
    alone = tune(["one"], (3e-4,), (1, 2), lambda wanted: [batch for _, (_, batch) in wanted])
    assert alone == {"one": {(3e-4, 1): 1, (3e-4, 2): 2}}  # no batch is smaller than a record


def test_another_batch_size_trains_on_as_many_records(source):
    made = plan(source, overrides=("train.steps=10", "train.validate_every=4")).config(
        Cell("lora", "own", 1e-3, 0, 4), {}
    )
    assert (made.train.batch_size, made.train.steps, made.train.validate_every) == (4, 20, 8)

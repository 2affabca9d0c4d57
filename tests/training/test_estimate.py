"""Memory before loading: the parts follow the shapes, the whole is near what is measured, and what fits is named."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlx.core as mx
import pytest
from toys import write_model

from mlx_hybrid.adapters import frozen
from mlx_hybrid.adapters.attach import attach
from mlx_hybrid.adapters.frozen import unpack
from mlx_hybrid.config import build_config
from mlx_hybrid.errors import ConfigError, MemoryLimitError
from mlx_hybrid.models.base import load_base
from mlx_hybrid.records.examples import Example
from mlx_hybrid.training.memory import estimate as memory
from mlx_hybrid.training.memory import shape as shapes
from mlx_hybrid.training.memory.estimate import (
    Load,
    check_fits,
    estimate,
    largest_load,
    smaller,
    way_out,
    widest_load,
)
from mlx_hybrid.training.memory.shape import UnknownShapeError, first_known, model_shape, write_holes

TOOLS = Path(__file__).resolve().parents[2] / "tools"
LOAD = Load(4, 96, 200)


def config(folder, method: str = "hybrid", **train):
    return build_config({"model": str(folder), "method": method, "train": {"batch_size": 4, **train}}, "test")


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """Large enough for its activations to show."""
    changes = {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 384}
    return write_model(tmp_path_factory.mktemp("models") / "larger", **changes)


@pytest.mark.parametrize("method", ["lora", "hybrid", "hybrid-boft", "full"])
def test_weights_are_counted_exactly_and_none_is_read(method, quantised_folder):
    settings = config(quantised_folder, method)
    mx.clear_cache()
    before = mx.get_active_memory()
    shape = model_shape(settings)
    assert mx.get_active_memory() - before < 200_000
    base = load_base(str(quantised_folder)).model
    assert shape.base_bytes == shapes.byte_count(base.parameters())
    attach(base, settings.adapter, seed=0)
    assert shape.trainable_bytes == shapes.byte_count(base.trainable_parameters())
    assert shape.base_bytes + shape.adapter_bytes == shapes.byte_count(base.parameters())


def test_weights_unpacked_once_are_counted_where_they_are(quantised_folder, monkeypatch):
    settings = config(quantised_folder, "lora")
    beside = model_shape(settings)
    base = load_base(str(quantised_folder)).model
    unpack(base)
    held = [module["_unpacked"].nbytes for _, module in base.named_modules() if "_unpacked" in module]
    monkeypatch.setattr(frozen, "UNPACKED_SHARE", 0)
    packed = model_shape(settings)
    assert (beside.unpacked_bytes, packed.unpacked_bytes) == (sum(held), 0) != (0, 0)
    assert (beside.unpacks_head, packed.unpacks_head) == (False, True)
    monkeypatch.undo()
    assert model_shape(config(quantised_folder, "full")).unpacked_bytes == 0


def test_a_stand_in_of_holes_has_the_shape_of_the_model(quantised_folder, tmp_path):
    tensors, sizes = [], {"F32": 4, "U32": 4, "BF16": 2, "F16": 2}
    with (quantised_folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    for name, tensor in header.items():
        if name != "__metadata__":
            kind, shape = tensor["dtype"], tensor["shape"]
            tensors.append((name, kind, shape, math.prod(shape) * sizes[kind]))
    (tmp_path / "config.json").write_bytes((quantised_folder / "config.json").read_bytes())
    write_holes(tmp_path / "model.safetensors", tensors)
    settings = config(quantised_folder)
    assert shapes.shape_of(tmp_path, settings) == shapes.shape_of(quantised_folder, settings)


def test_every_item_grows_with_what_it_is_made_of(larger):
    settings = config(larger)
    shape, items = model_shape(settings), estimate(model_shape(settings), LOAD, settings).items
    twice = estimate(shape, Load(8, 96, 400), settings).items
    assert twice["activations"] == pytest.approx(2 * items["activations"])
    longer = estimate(shape, Load(4, 192, 200), settings).items
    assert longer["attention scores"] == pytest.approx(4 * items["attention scores"])
    assert longer["logits"] == items["logits"]
    assert items["base"] == twice["base"] == shape.base_bytes
    assert items["optimiser"] == 2 * shape.trainable_bytes
    recomputed = estimate(shape, LOAD, config(larger, grad_checkpoint=True))
    assert recomputed.items["activations"] < 0.2 * items["activations"]
    assert recomputed.peak < 0.7 * estimate(shape, LOAD, settings).peak


@pytest.mark.parametrize(("method", "recompute"), [("hybrid", False), ("lora", True)])
def test_the_estimate_is_near_the_measured_peak(method, recompute, larger, default_install, monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    from bench import apart
    from bench_memory import measured_peak

    settings = config(larger, method, grad_checkpoint=recompute)
    guess, peak = estimate(model_shape(settings), LOAD, settings).peak, apart(measured_peak, settings, LOAD)
    assert guess == pytest.approx(peak, rel=0.15)


def test_logits_count_as_they_are_formed(larger):
    """Of some chunks where a head is frozen, with its gradients where it trains, of every token where there is none."""
    settings = config(larger, prompt_hold="loss")
    shape = replace(model_shape(settings), vocabulary=150_000)
    assert shape.chunks_logits
    assert shape.head_gradient_bytes == 0
    assert model_shape(config(larger, "full")).head_gradient_bytes == 4 * 264 * 128
    few, many = (
        estimate(shape, Load(4, 1024, n), settings).items["logits"] for n in (512, 4096)
    )  # of 4,096 tokens
    assert few == many
    head = 4 * shape.vocabulary * shape.width
    trained = estimate(replace(shape, head_gradient_bytes=head), Load(4, 1024, 512), settings)
    assert trained.items["logits"] == pytest.approx(few + 2 * head)
    whole = replace(shape, chunks_logits=False)
    every = 4 * shape.vocabulary * 4096
    for targets in (512, 4096):
        assert estimate(whole, Load(4, 1024, targets), settings).items["logits"] > 2 * every
    assert few < every
    beside = [estimate(shape, Load(4, 1024, 512, held), config(larger)).items["logits"] for held in (16, 512)]
    assert few < beside[0] < beside[1] == 2 * few  # the base's


def records_of(*sizes: tuple[int, int]) -> list[Example]:
    """Records of (tokens, trained tokens)."""
    return [Example([1] * n, [i >= n - k for i in range(n)], "r:1", "", n) for n, k in sizes]


def test_the_largest_load_is_the_longest_records_and_the_most_targets(larger):
    records = records_of((9, 8), (50, 2), (20, 19))
    settings = config(larger, batch_size=2, max_tokens=65, prompt_weight=0.0)
    assert largest_load(records, settings) == Load(2, 49, 27)
    assert largest_load(records, replace(settings, train=replace(settings.train, max_tokens=31))) == Load(
        2, 30, 27
    )
    held = replace(settings, train=replace(settings.train, prompt_weight=0.1, prompt_share=0.5))
    assert largest_load(records, held) == Load(2, 49, 19 + 2 + 47, held=47)
    held = replace(held, train=replace(held.train, prompt_share=0.1))  # all in a quarter of the records
    assert largest_load(records, held) == Load(2, 49, 19 + 2 + 19, held=19)
    by_loss = replace(held, train=replace(held.train, prompt_hold="loss", prompt_share=0.5))
    assert largest_load(records, by_loss) == Load(2, 49, 19 + 2 + 24)
    assert widest_load(settings) == Load(2, 64, 128)
    assert not largest_load(records_of((9, 8), (20, 19)), held).held  # no prompts, nothing beside
    texts = largest_load(records_of((64, 63), (64, 63), (40, 20), (40, 20)), held)
    assert texts == Load(2, 63, 2 * 63, held=2 * 19)  # of other records than have the most targets


RECORDS = records_of(*[(97, 50)] * 4)


def test_the_smallest_change_that_fits_is_named(larger):
    settings = config(larger)
    shape = model_shape(settings)
    load_of = partial(largest_load, RECORDS)
    need = estimate(shape, load_of(settings), settings).needed
    recomputed = estimate(shape, LOAD, config(larger, grad_checkpoint=True)).needed
    assert way_out(shape, load_of, settings, need - 1) == "train.grad_checkpoint=true"
    words = way_out(shape, load_of, settings, recomputed - 1)
    assert "train.batch_size=" in words
    assert "train.accumulate=" in words
    assert way_out(shape, load_of, settings, 1000) == ""
    changes = list(smaller(settings, LOAD.tokens))
    assert all(change not in changes[:index] for index, change in enumerate(changes))
    assert changes[-1]["too_long"] == "truncate"


def test_a_run_that_cannot_fit_is_refused_with_the_way_out(larger, monkeypatch):
    settings = config(larger)
    check_fits(settings, RECORDS)
    shape = model_shape(settings)
    need = estimate(shape, largest_load(RECORDS, settings), settings).needed
    monkeypatch.setattr(memory, "memory_limit", lambda: need - 1)
    with pytest.raises(
        MemoryLimitError, match=r"may be used here; what fits: --set train.grad_checkpoint=true"
    ) as error:
        check_fits(settings, RECORDS)
    assert error.value.exit_code == 4
    monkeypatch.setattr(memory, "memory_limit", lambda: 1)
    with pytest.raises(MemoryLimitError, match="a smaller base, or one of 4 bits"):
        check_fits(settings, RECORDS)


def test_a_run_goes_without_the_unpacked_copy_where_that_alone_fits(quantised_folder, monkeypatch):
    settings = config(quantised_folder, "lora")
    shape, load = model_shape(settings), largest_load(RECORDS, settings)
    need = estimate(shape, load, settings).needed
    without = estimate(replace(shape, unpacked_bytes=0), load, settings).needed
    for limit, room in ((need, True), (need - 1, False), (without, False)):
        monkeypatch.setattr(memory, "memory_limit", lambda limit=limit: limit)
        assert check_fits(settings, RECORDS) is room
    monkeypatch.setattr(memory, "memory_limit", lambda: without - 1)
    with pytest.raises(MemoryLimitError):
        check_fits(settings, RECORDS)
    assert check_fits(settings, RECORDS, force=True) is False


def test_an_unfamiliar_config_is_an_error_of_its_own():
    with pytest.raises(UnknownShapeError, match="hidden_size"):
        first_known({}, ("hidden_size", "n_embd"))
    assert first_known({"n_embd": 7}, ("hidden_size", "n_embd")) == 7
    with pytest.raises(ConfigError, match="cannot be had from the Hub"):
        model_shape(build_config({"model": "nobody/nothing-here"}, "test"))

"""Memory before loading: the parts follow the shapes, the whole is near what is measured, and what fits is named."""

import json
from dataclasses import replace
from functools import partial
from itertools import islice

import mlx.core as mx
import numpy as np
import pytest
from toys import write_model

from mlx_hybrid.config import build_config
from mlx_hybrid.errors import ConfigError, MemoryLimitError, MlxHybridError
from mlx_hybrid.records.template import Example
from mlx_hybrid.training.batches import training_batches
from mlx_hybrid.training.material import check_fits
from mlx_hybrid.training.memory import estimate as module
from mlx_hybrid.training.memory import shape as shapes
from mlx_hybrid.training.memory.estimate import (
    Load,
    estimate,
    largest_load,
    packed_loads,
    way_out,
    widest_load,
)
from mlx_hybrid.training.memory.shape import UnknownShapeError, first_known, model_shape, write_holes
from mlx_hybrid.training.packing import make_packed_batch
from mlx_hybrid.training.probe import probe, random_examples

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
    from mlx_hybrid.adapters.attach import attach
    from mlx_hybrid.models.base import load_base

    settings = config(quantised_folder, method)
    mx.clear_cache()
    before = mx.get_active_memory()
    shape = model_shape(settings)
    assert mx.get_active_memory() - before < 200_000
    base = load_base(str(quantised_folder)).model
    assert shape.base_bytes == shapes.byte_count(base.parameters())
    attach(base, settings.adapter, method=method, seed=0)
    assert shape.trainable_bytes == shapes.byte_count(base.trainable_parameters())
    assert shape.base_bytes + shape.adapter_bytes == shapes.byte_count(base.parameters())


def test_a_stand_in_of_holes_has_the_shape_of_the_model(quantised_folder, tmp_path):
    tensors, sizes = {}, {"F32": 4, "U32": 4, "BF16": 2, "F16": 2}
    with (quantised_folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for size in tensor["shape"]:
                count *= size
            tensors[name] = {**tensor, "size": count * sizes[tensor["dtype"]]}
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
def test_the_estimate_is_near_the_measured_peak(method, recompute, larger, default_install):
    settings = config(larger, method, grad_checkpoint=recompute)
    guess, peak = estimate(model_shape(settings), LOAD, settings).peak, probe(settings, LOAD)
    assert guess == pytest.approx(peak, rel=0.15)


def test_logits_count_as_they_are_formed(larger):
    """Of some chunks where a head is frozen, with its gradients where it trains, of every token where there is none."""
    settings = config(larger)
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


def records_of(*sizes: tuple[int, int]) -> list[Example]:
    """Records of (tokens, trained tokens)."""
    return [Example([1] * n, [i >= n - k for i in range(n)], "r:1", "", n) for n, k in sizes]


def test_the_largest_load_is_the_longest_records_and_the_most_targets(larger):
    records = records_of((9, 8), (50, 2), (20, 19))
    settings = config(larger, batch_size=2, max_tokens=65)
    shape = model_shape(settings)
    assert largest_load(shape, records, settings) == Load(2, 49, 27)
    assert largest_load(shape, records, config(larger, batch_size=2, max_tokens=31)) == Load(2, 30, 27)
    assert widest_load(shape, settings) == Load(2, 64, 128)
    assert widest_load(shape, config(larger, batch_size=6, max_tokens=65, packing="auto")) == Load(
        2, 256, 384
    )
    made = random_examples(Load(2, 49, 27), 100)
    assert [len(e.tokens) for e in made] == [50, 50]
    assert sum(e.trained_count for e in made) == 28


@pytest.mark.parametrize("method", ["lora", "hybrid"])  # hybrid starts from the gradient of padded batches
def test_packed_rows_count_as_the_trainer_lays_them_out(method, larger):
    rng = np.random.default_rng(0)
    records = records_of(
        *((n, n // 2) for n in rng.lognormal(3.5, 0.8, 60).astype(int).clip(4, 200).tolist())
    )
    settings = config(larger, method, batch_size=5, epochs=2.0, packing="auto")
    batches = islice(
        training_batches(records, batch_size=5, seed=0, pool=1, lay_out=make_packed_batch), 2 * 12
    )
    loads = packed_loads(records, settings)
    made = {(*batch.tokens.shape, batch.trained) for batch in batches}
    assert made <= {(load.rows, load.tokens, load.targets) for load in loads}
    assert (len(made) == len(loads)) == (method == "lora")
    shape = model_shape(settings)
    largest = largest_load(shape, records, settings)
    assert estimate(shape, largest, settings).peak == max(
        estimate(shape, load, settings).peak for load in loads
    )
    padded = largest_load(shape, records, config(larger, method, batch_size=5, epochs=2.0))
    assert (largest.rows < padded.rows) == (method == "lora")


def test_a_model_that_does_not_pack_counts_padded_records(larger):
    settings = config(larger, "lora", packing="auto")
    shape = model_shape(settings)
    assert shape.packs
    records = records_of((30, 9), (10, 4), (10, 4), (10, 4))
    assert largest_load(shape, records, settings) == Load(1, 56, 21)
    assert largest_load(replace(shape, packs=False), records, settings) == Load(4, 29, 21)


def test_the_smallest_change_that_fits_is_named(larger):
    settings = config(larger)
    shape = model_shape(settings)
    load_of = partial(largest_load, shape, random_examples(LOAD, 200))
    need = estimate(shape, load_of(settings), settings).needed
    recomputed = estimate(shape, LOAD, config(larger, grad_checkpoint=True)).needed
    assert way_out(shape, load_of, settings, need - 1) == "train.grad_checkpoint=true"
    words = way_out(shape, load_of, settings, recomputed - 1)
    assert "train.batch_size=" in words
    assert "train.accumulate=" in words
    assert way_out(shape, load_of, settings, 1000) == ""
    changes = [change for change, _ in module.smaller(settings, LOAD.tokens)]
    assert len(changes) == len(set(changes))
    assert changes[-1].endswith("train.too_long=truncate")


def test_a_run_that_cannot_fit_is_refused_with_the_way_out(larger, monkeypatch):
    settings = config(larger)
    records = random_examples(LOAD, 200)
    check_fits(settings, records)
    shape = model_shape(settings)
    need = estimate(shape, largest_load(shape, records, settings), settings).needed
    monkeypatch.setattr(module, "memory_limit", lambda: need - 1)
    with pytest.raises(
        MemoryLimitError, match=r"may be used here; what fits: --set train.grad_checkpoint=true"
    ) as error:
        check_fits(settings, records)
    assert error.value.exit_code == 4
    monkeypatch.setattr(module, "memory_limit", lambda: 1)
    with pytest.raises(MemoryLimitError, match="a smaller base, or one of 4 bits"):
        check_fits(settings, records)


def test_a_probe_that_dies_says_what_it_said(larger, default_install):
    broken = replace(config(larger), model="/nowhere/at-all")
    with pytest.raises(MlxHybridError, match=r"The probe ended with code 1 .*no such folder"):
        probe(broken, LOAD)


def test_an_unfamiliar_config_is_an_error_of_its_own():
    with pytest.raises(UnknownShapeError, match="hidden_size"):
        first_known({}, shapes.WIDTH)
    assert first_known({"n_embd": 7}, shapes.WIDTH) == 7
    with pytest.raises(ConfigError, match="cannot be had from the Hub"):
        model_shape(build_config({"model": "nobody/nothing-here"}, "test"))

"""Sampling, prompts, caches, the base beside its adapter, and text made safe for a terminal."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import write_run
from toys import VOCABULARY, byte_tokenizer, wrapped

from mlx_hybrid.adapters.store import probe_logits
from mlx_hybrid.chat.terminal import Printable
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.models import generate
from mlx_hybrid.models.adapted import open_pair
from mlx_hybrid.models.base import load_base
from mlx_hybrid.models.generate import Prompts, Sampling, make_sampler, prompt_tokens, room_for_answer, stream
from mlx_hybrid.models.sampling import cut, make_processors


def answer(model, tokenizer, tokens, **settings):
    pieces = list(stream(model, tokenizer, tokens, Sampling(**{"max_tokens": 8, **settings})))
    return "".join(piece.text for piece in pieces), pieces[-1]


def test_the_base_beside_is_the_base_itself(pair, base_folder):
    assert mx.array_equal(probe_logits(pair.base), probe_logits(load_base(str(base_folder)).model))
    assert pair.modules == 14
    assert mx.abs(probe_logits(pair.base) - probe_logits(pair.model)).max() > 1e-3
    assert "adapter on 14 modules, logits change by up to" in pair.describe()
    shared = pair.model.model.layers[0].mlp.up_proj.linear
    assert pair.base.model.layers[0].mlp.up_proj is shared


def test_a_full_fine_tune_has_its_base_too(tmp_path, base_folder):
    run = write_run(tmp_path / "full", base_folder, method="full")
    pair = open_pair(str(run.path))
    assert mx.array_equal(probe_logits(pair.base), probe_logits(load_base(str(base_folder)).model))
    assert not mx.array_equal(probe_logits(pair.base), probe_logits(pair.model))


def test_greedy_is_the_argmax(pair):
    tokens = prompt_tokens(pair.tokenizer, "hello")
    _, last = answer(pair.model, pair.tokenizer, tokens, max_tokens=1)
    assert last.token == int(pair.model(mx.array([tokens]))[0, -1].argmax())


def test_raw_text_begins_as_training_does(pair):
    assert pair.tokenizer.decode(pair.tokenizer.continued("abc")) == "abc"  # the tokenizer adds none
    assert pair.tokenizer.decode(pair.tokenizer.continued("<s>abc")) == "<s>abc"


def test_a_prompt_beyond_the_context_is_refused(base_folder):
    assert room_for_answer(10, 16, 100) == 6
    with pytest.raises(ConfigError, match="shorten the prompt"):
        room_for_answer(16, 16, 1)
    with pytest.raises(ConfigError, match="16 to 256"):
        open_pair(str(base_folder), context=512)


def test_what_was_read_is_taken_up_where_it_is_shared(pair):
    prompts = Prompts(pair.model)
    first = prompt_tokens(pair.tokenizer, "the same beginning, one end")
    second = prompt_tokens(pair.tokenizer, "the same beginning, another")

    def run(tokens, prompts):
        pieces = stream(pair.model, pair.tokenizer, tokens, Sampling(max_tokens=8), prompts=prompts)
        return [piece.token for piece in pieces]

    run(first, prompts)
    _, rest = prompts.take(second)
    assert 0 < len(rest) < len(second)
    assert run(second, prompts) == run(second, None)
    assert run(second, prompts) == run(second, None)
    assert len(prompts.take(second)[1]) <= 2


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        *(
            ({"top_p": p}, kept)
            for p, kept in ((0.4, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (0.99, 4))
        ),
        ({"top_k": 3}, 3),
        ({"top_k": 9}, 4),
        ({"min_p": 0.31}, 2),
        ({"min_p": 0.29}, 3),
        ({"top_k": 2, "top_p": 0.6}, 1),  # of the two that are left, the first has 0.625
        ({"top_p": 0.9, "min_p": 0.5}, 2),
    ],
)
def test_the_cuts_keep_the_smallest_set_that_reaches_them(how, kept):
    probabilities = np.array([0.15, 0.5, 0.05, 0.3])
    logits = cut(mx.array(np.log(probabilities)[None]), Sampling(**how))
    likeliest = probabilities >= sorted(probabilities)[-kept]
    assert np.array_equal(np.array(mx.isfinite(logits))[0], likeliest)


def test_the_penalty_is_that_of_its_paper():
    """x / θ over zero and x · θ below, once for each token seen (Keskar et al. 2019, equation 3 as it is used)."""
    logits = np.array([[2.0, -1.0, 0.5, -3.0]])
    (penalise,) = make_processors(Sampling(repetition_penalty=2.0), [3])
    assert np.array(penalise(mx.array([0, 1, 0]), mx.array(logits))).tolist() == [[1.0, -2.0, 0.5, -6.0]]
    assert make_processors(Sampling(), [3]) == []


def test_answers_side_by_side_are_those_alone(pair):
    """Of every length, greedy, drawn and penalised, more than there are rows; what all begin with is read once."""
    texts = ["the same beginning " + "x" * size for size in (1, 30, 7, 90, 2, 41)]
    prompts = [prompt_tokens(pair.tokenizer, text) for text in texts]
    how = [Sampling(max_tokens=size) for size in (12, 3, 20)]
    how += [Sampling(max_tokens=15, temperature=1, seed=4), Sampling(max_tokens=15, repetition_penalty=1.5)]
    how += [Sampling(max_tokens=1)]
    together = dict(generate.answers(pair.model, pair.tokenizer, prompts, how, rows=3))
    assert sorted(together) == list(range(6))
    for number, (tokens, sampling) in enumerate(zip(prompts, how)):
        alone = list(stream(pair.model, pair.tokenizer, tokens, sampling))
        assert [p.token for p in together[number]] == [p.token for p in alone], number
        assert "".join(p.text for p in together[number]) == "".join(p.text for p in alone)
        assert together[number][-1].finish == alone[-1].finish


def test_what_is_kept_of_an_answer_holds_no_other(pair):
    """Sixteen rows side by side: the caches that stay take their own room and not that of what they stood among."""
    batch = generate.Batch(pair.model, pair.tokenizer, 16)
    for size in range(16):
        batch.add(prompt_tokens(pair.tokenizer, "x" * (20 + 8 * size)), Sampling(max_tokens=4 + size))
    before = mx.get_active_memory()
    while batch.rows:
        list(batch.step())
    batch.generator = None
    mx.clear_cache()
    assert batch.prompts.store.nbytes > 0
    assert mx.get_active_memory() - before < 1.5 * batch.prompts.store.nbytes


def test_sampling_follows_temperature():
    logprobs = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]]))
    sample = make_sampler(Sampling(temperature=0.5, seed=1))
    drawn = np.bincount(np.array(sample(mx.broadcast_to(logprobs, (2000, 4)))), minlength=4) / 2000
    expected = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    assert np.abs(drawn - expected / expected.sum()).max() < 0.04


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("temperatur", 1, 'did you mean "temperature"'),
        ("temperature", "warm", "must be a number"),
        ("temperature", -1, "at least 0"),
        ("temperature", math.nan, "finite"),
        ("top_p", 0, "at least 1e-06"),
        ("max_tokens", 0, "at least 1"),
        ("seed", -3, "seed"),
        ("seed", True, "whole number"),
    ],
)
def test_a_setting_is_honoured_or_refused(name, value, said):
    with pytest.raises(ConfigError, match=said):
        Sampling().with_values({name: value}, "here")
    assert Sampling().with_values({"seed": 7}, "here").seed == 7
    assert Sampling(seed=7).with_values({"seed": None}, "here").seed is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext ünïcödé 漢字 العربية", "plain\n\ttext ünïcödé 漢字 العربية"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\x1bP1$r\x1b\\b", "ab"),
        ("a\x1b(Bb\x1bcc", "abc"),
        ("bell\x07 back\x08 carriage\r nul\x00 del\x7f", "bell back carriage nul del"),
        ("\x9b31mred\x9d0;t\x9cx", "redx"),
        ("open\x1b]0;never closed\nnext", "open\nnext"),
        ("cut\x1b[31", "cut"),
    ],
)
def test_escapes_never_reach_a_terminal(text, shown):
    assert Printable()(text) == shown
    safe = Printable()
    assert "".join(safe(character) for character in text) == shown


@given(st.text(alphabet=st.sampled_from("ab\x1b[];\\P(0m\x07\x9b\x9c\n\x18é")))
def test_nothing_but_text_comes_out(text):
    shown = Printable()(text)
    assert not set(shown) & set("\x1b\x07\x9b\x9c\x18")
    assert shown.count("\n") == text.count("\n")


class Always(nn.Module):
    """A model that says one token whatever it reads."""

    def __init__(self, token: int):
        super().__init__()
        self.layers, self._token = [], token

    def __call__(self, tokens, cache=None):
        said = (mx.arange(VOCABULARY) == self._token).astype(mx.float32)
        return mx.broadcast_to(said, (*tokens.shape, VOCABULARY))


@pytest.mark.parametrize("letter", ["é", "z"])
def test_a_cut_answer_ends_with_a_whole_character(letter):
    tokenizer = wrapped(byte_tokenizer())
    first_byte = tokenizer.encode(letter, add_special_tokens=False)[0]
    text, last = answer(Always(first_byte), tokenizer, [3], max_tokens=1)
    assert (text, last.finish) == ({"é": "", "z": "z"}[letter], "length")

import mlx.core as mx
import pytest

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.metrics.translation import greedy, reference_columns


@pytest.mark.parametrize(
    ("hypotheses", "references"), [([], []), (["a"], []), (["a"], [[]]), (["a", "b"], [["a"], ["a", "b"]])]
)
def test_what_cannot_be_scored_is_an_error(hypotheses, references):
    with pytest.raises(DataError):
        reference_columns(hypotheses, references)


def test_greedy_generation_takes_the_likeliest_tokens(model, tokenizer):
    prompts, expected = [[5, 9, 100, 31], [7]], []
    for prompt in prompts:
        tokens = list(prompt)
        while len(tokens) < len(prompt) + 4 and tokens[-1] != tokenizer.eos_token_id:
            tokens.append(int(mx.argmax(model(mx.array([tokens]))[0, -1]).item()))
        expected.append(tokenizer.decode(tokens[len(prompt) :]).strip())
    assert greedy(tokenizer, 4)(model, prompts) == expected

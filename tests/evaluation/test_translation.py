import mlx.core as mx
import pytest
from mlx_lm.tokenizer_utils import NaiveStreamingDetokenizer
from sacrebleu.metrics import CHRF

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.translation import greedy, score_translations

REFERENCES = [
    "The cat sat on the mat.",
    "Nyumba ni kubwa sana.",
    "Il pleut depuis ce matin.",
    "Wir gehen nach Hause.",
]
HYPOTHESES = ["A cat sat on a mat.", "Nyumba kubwa.", "", "Wir gehen nach Hause."]


def test_chrf_is_that_of_sacrebleu():
    result = score_translations(HYPOTHESES, [[r] for r in REFERENCES], seed=0, spbleu=False)
    expected = CHRF(word_order=2).corpus_score(HYPOTHESES, [REFERENCES])
    assert result["chrf"]["value"] == pytest.approx(expected.score)
    assert result["chrf"]["low"] < expected.score < result["chrf"]["high"]
    assert (result["count"], result["empty"]) == (4, 1)
    assert "nw:2" in result["chrf_signature"]
    assert "spbleu" not in result


def test_several_references():
    others = ["The cat is sitting on the mat.", "Nyumba kubwa.", "Il pleut.", "Gehen wir heim."]
    result = score_translations(HYPOTHESES, list(zip(REFERENCES, others)), seed=0, spbleu=False)
    expected = CHRF(word_order=2).corpus_score(HYPOTHESES, [REFERENCES, others])
    assert result["chrf"]["value"] == pytest.approx(expected.score)


@pytest.mark.parametrize(
    ("hypotheses", "references"), [([], []), (["a"], []), (["a"], [[]]), (["a", "b"], [["a"], ["a", "b"]])]
)
def test_what_cannot_be_scored_is_an_error(hypotheses, references):
    with pytest.raises(DataError):
        score_translations(hypotheses, references, seed=0, spbleu=False)


def test_greedy_generation_takes_the_likeliest_tokens(model, tokenizer):
    class Streaming(type(tokenizer)):
        clean_up_tokenization_spaces = False

        @property
        def detokenizer(self):
            return NaiveStreamingDetokenizer(self)

    prompts, expected = [[5, 9, 100, 31], [7]], []
    for prompt in prompts:
        tokens = list(prompt)
        while len(tokens) < len(prompt) + 4 and tokens[-1] != tokenizer.eos_token_id:
            tokens.append(int(mx.argmax(model(mx.array([tokens]))[0, -1]).item()))
        expected.append(tokenizer.decode(tokens[len(prompt) :]).strip())
    assert greedy(model, Streaming(), max_tokens=4)(prompts) == expected

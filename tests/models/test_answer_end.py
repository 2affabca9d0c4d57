"""Where a chat template ends answers with a token that no setting names, that token is trained and stopped at."""

import json

import mlx.core as mx
import pytest
from mlx_lm.utils import load_tokenizer
from toys import CHATML, byte_tokenizer, write_model

from mlx_hybrid.config import build_config
from mlx_hybrid.models.adapted import load_any
from mlx_hybrid.models.base import load_base, read_tokenizer
from mlx_hybrid.models.generate import Sampling, prompt_tokens, stream
from mlx_hybrid.models.templates import unnamed_end
from mlx_hybrid.records.examples import Tokenised, make_example
from mlx_hybrid.records.record import Record, Split
from mlx_hybrid.training.setup import Setup, data_notes

END, PAD = "<|im_end|>", "<pad>"
ENDS = {
    "named by nothing": (CHATML, END),
    "an end that is named comes later": (CHATML + PAD, None),
    "the next turn opens with a token": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}",
        "",
    ),
    "refuses": ("{{ raise_exception('no') }}", None),
    "rewrites": (CHATML.replace("m['content']", "m['content'] | replace('⁆', '')"), None),
    "none": (None, None),
}  # fmt: skip


def base_like(folder, template=CHATML):
    """A model as Qwen's base models are: ChatML turns, and another token named as the end."""
    write_model(folder, eos_token_id=256, tie_word_embeddings=False)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer = byte_tokenizer(template)
    tokenizer.eos_token = PAD
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", ENDS)
def test_what_ends_an_answer(case, tmp_path):
    template, end = ENDS[case]
    tokenizer = read_tokenizer(str(base_like(tmp_path / "base", template)))
    assert unnamed_end(tokenizer, tmp_path / "base") == end
    ids = tokenizer.convert_tokens_to_ids([PAD, *([end] if end else [])])
    assert tokenizer.eos_token_ids == set(ids)


def test_a_token_that_is_added_but_not_special_counts_too(tmp_path):
    folder = base_like(tmp_path / "base")
    tree = json.loads((folder / "tokenizer.json").read_text())
    for token in tree["added_tokens"]:
        token["special"] = token["special"] and token["content"] != END
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    tokenizer = read_tokenizer(str(folder))
    assert unnamed_end(tokenizer, folder) == END


def test_the_end_is_trained_in_every_turn(tmp_path):
    tokenizer = read_tokenizer(str(base_like(tmp_path / "base")))
    turns = [("user", "Hujambo?"), ("assistant", "Habari"), ("user", "Na?"), ("assistant", "Njema")]
    messages = [{"role": role, "content": text} for role, text in turns]
    example = make_example(Record({"messages": messages}, "data.jsonl", 1), tokenizer)
    trained = [t for t, learnt in zip(example.tokens, example.trained, strict=True) if learnt]
    assert tokenizer.decode(trained) == f"Habari{END}Njema{END}"


def test_generation_stops_there(tmp_path):
    """The head answers the prompt with the end's token, so that an end that is not heeded would run to the limit."""
    loaded = load_any(str(base_like(tmp_path / "base")))
    tokens = prompt_tokens(loaded.tokenizer, "Hujambo?")
    model, end = loaded.model, loaded.tokenizer.convert_tokens_to_ids(END)
    last = model.model(mx.array([tokens]))[0, -1]
    model.lm_head.weight[end] = 100 * last
    pieces = list(stream(model, loaded.tokenizer, tokens, Sampling(max_tokens=5)))
    assert pieces[-1].token == end
    assert (pieces[-1].finish, pieces[-1].count) == ("stop", 1)
    stock = load_tokenizer(tmp_path / "base")
    assert list(stream(model, stock, tokens, Sampling(max_tokens=5)))[-1].count > 1


@pytest.mark.parametrize(
    ("case", "said"),
    [("named by nothing", END), ("the next turn opens with a token", "with no token"), ("none", "")],
)
def test_training_says_so(case, said, tmp_path):
    base = load_base(str(base_like(tmp_path / "base", ENDS[case][0])))
    setup, config = Setup(base, [Tokenised()] * 3), build_config({}, "test")
    pair = Record({"prompt": "Hujambo?", "completion": "Sijambo"}, "data.jsonl", 1)
    text = Record({"text": "Habari ya asubuhi"}, "data.jsonl", 2)
    notes = [note.text for note in data_notes(config, Split([pair, text], [], []), setup)]
    assert len(notes) == bool(said)
    assert all(said in note for note in notes)
    assert not list(data_notes(config, Split([text], [], []), setup))

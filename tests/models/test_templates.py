"""Chat templates of our own, for bases without one: what they write, where they end, and that an adapter keeps them."""

import json

import pytest
from click.testing import CliRunner
from pages import no_pages
from tiny_model import write_base
from toys import byte_tokenizer, wrapped

from mlx_hybrid.cli import main
from mlx_hybrid.config import ModelConfig
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.models.base import tokenizer_for
from mlx_hybrid.models.templates import NAMED, PLAIN, template_text

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
]


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A base without a chat template."""
    return write_base(tmp_path_factory.mktemp("bare") / "bare", template=None)


def test_the_plain_template_asks_as_it_is_trained_and_ends_with_the_end_of_text(bare):
    tokenizer = tokenizer_for(ModelConfig(name=str(bare)))
    end = tokenizer.eos_token
    text = f"### System:\nBe brief.\n\n### User:\nhello\n\n### Assistant:\nhi{end}\n\n"
    assert tokenizer.render(TALK) == text
    assert text.startswith(tokenizer.render(TALK[:2], opened=True))
    assert tokenizer.eos_token_ids == {tokenizer.convert_tokens_to_ids(end)}
    assert tokenizer.given == PLAIN
    with pytest.raises(ConfigError, match="refuses the turns tool"):
        tokenizer.ask([{"role": "tool", "content": "x"}])


def test_a_template_of_ones_own_is_a_file_or_text_and_must_end_an_answer(bare, tmp_path):
    own = "{% for m in messages %}[{{ m['content'] }}]{{ eos_token }}{% endfor %}"
    (tmp_path / "own.jinja").write_text(own)
    for given in (str(tmp_path / "own.jinja"), own):
        tokenizer = tokenizer_for(ModelConfig(name=str(bare), chat_template=given))
        assert tokenizer.render(TALK[1:]) == f"[hello]{tokenizer.eos_token}[hi]{tokenizer.eos_token}"
    for template, said in (("chatml", "no token of this model's"), ("{{ 1 }}", "does not write an answer")):
        with pytest.raises(ConfigError, match=said):
            tokenizer_for(ModelConfig(name=str(bare), chat_template=template))
    (tmp_path / "no.jinja").write_text("hello")
    for name, said in (("plian", 'did you mean "plain"'), (str(tmp_path / "no.jinja"), "holds no Jinja")):
        with pytest.raises(ConfigError, match=said):
            template_text(name)


def test_a_template_takes_the_place_of_the_models_own():
    tokenizer = wrapped(byte_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}"))
    tokenizer.use_template(NAMED["chatml"])
    talk = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nhi<|im_end|>\n"
    assert tokenizer.render(TALK[1:]) == talk


def test_a_run_on_a_base_without_one_can_be_chatted_with(bare, tmp_path, monkeypatch):
    """The next command that the run names works, and the exports of the adapter bring the template."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Say {i}", "completion": f"number {i}"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = ["finetune", "--model", str(bare), "--data", "rows.jsonl", "-o", "run", "--set", "evaluate=false"]
    call = lambda *words, text=None: CliRunner().invoke(main, [str(w) for w in words], input=text)  # noqa: E731
    with no_pages():
        done = call(*run, "--steps", 2, "--learning-rate", 0.005)
    assert done.exit_code == 0, done.output
    assert "turns are written plainly" in " ".join(done.output.split())
    assert "mlx-hybrid chat run" in done.output
    kept = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert kept["mlx_hybrid"]["chat_template"] == PLAIN
    answers = [call("chat", "run", "--max-tokens", 9, text="Say 3\n")]
    assert call("export", "run", "--to", "merged", "-o", "merged").exit_code == 0
    answers.append(call("chat", "merged", "--max-tokens", 9, text="Say 3\n"))
    assert [answer.exit_code for answer in answers] == [0, 0]
    assert (tmp_path / "merged" / "chat_template.jinja").read_text() == PLAIN
    assert "chat_template.jinja" in (tmp_path / "merged" / "README.md").read_text()
    assert call("chat", bare, "--template", "plain", "--max-tokens", 3, text="Say 3\n").exit_code == 0

"""`records`: a record as the model will see it."""

import json

from acting import rows_of, write_rows
from commanding import command

from mlx_hybrid.models.base import read_tokenizer


def run(tmp_path, rows, *options, **how):
    path = write_rows(tmp_path / "chats.jsonl", rows)
    return command("records", path, *options, **how)


ASKED, ANSWERED = {"role": "user", "content": "Hujambo?"}, {"role": "assistant", "content": "Sijambo."}
CHAT = {"id": "a", "messages": [ASKED, ANSWERED]}
UNTRAINED = {"messages": [ASKED, ANSWERED | {"train": False}]}


def test_the_trained_text_is_marked(tmp_path):
    result = run(tmp_path, [CHAT, UNTRAINED], code=0)
    assert "Hujambo?" in result.stdout
    assert "⟦Sijambo.<|end|>⟧" in result.stdout
    assert "set aside: every answer is empty, or marked" in result.stdout
    assert "chats.jsonl as messages (2 records)" in result.stderr


def test_as_json_the_tokens_are_those_of_training_and_of_chat(tmp_path):
    result = run(tmp_path, [CHAT, UNTRAINED], "--json")
    first, second = rows_of(result.stdout)
    tokenizer = read_tokenizer("bundled")
    assert first["id"] == "a"
    begin = first["trained"].index(1)
    assert first["asked"] == first["tokens"][:begin] == tokenizer.ask(CHAT["messages"][:1])
    trained = [t for t, flag in zip(first["tokens"], first["trained"], strict=True) if flag]
    assert tokenizer.decode(trained) == "Sijambo.<|end|>"
    assert (second["tokens"], first["set_aside"]) == ([], None)
    assert "marked" in second["set_aside"]


def test_what_the_template_leaves_out_stands_beside_the_record_and_not_in_its_json(tmp_path):
    row = {"messages": [CHAT["messages"][0], CHAT["messages"][1] | {"thinking": "Salamu."}]}
    assert "5 trained; the chat template does not write reasoning\n" in run(tmp_path, [row]).stdout
    assert set(json.loads(run(tmp_path, [row], "--json").stdout)) == {
        "id", "tokens", "trained", "asked", "set_aside"
    }  # fmt: skip


def test_a_line_that_is_no_record_is_named(tmp_path):
    said = run(tmp_path, [{"question": "?"}], code=2).stderr
    assert "chats.jsonl:1: no record of a known shape has question" in said
    assert "chats.jsonl:2" in run(tmp_path, [CHAT, {"question": "?"}], code=3).stderr


def test_keys_of_ones_own_are_shown_as_they_are_read(tmp_path):
    rows, read = [{"q": "Hujambo?", "a": "Sijambo."}] * 9, ("--map", "q=prompt,a=completion")
    result = run(tmp_path, rows, *read, "--show", "1", code=0)
    assert result.stdout.count("⟦Sijambo.<|end|>⟧") == 1
    assert "prompts and completions (9 records)" in result.stderr

"""Conversations: turns, caches, context, files."""

import json

import pytest

from mlx_hybrid.chat.conversation import Conversation
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.models.generate import Sampling, stream
from mlx_hybrid.records.record import load_records

SHORT = Sampling(max_tokens=12)


def say(conversation, text):
    return "".join(piece.text for piece in conversation.ask(text))


def fresh_answer(pair, messages, sampling=SHORT):
    tokens = pair.tokenizer.ask(messages)
    return "".join(piece.text for piece in stream(pair.model, pair.tokenizer, tokens, sampling))


def test_every_turn_sees_the_turns_before(pair):
    conversation = Conversation(pair, SHORT, "Be brief.")
    for text in ("one", "two", "three"):
        say(conversation, text)
    messages = [{"role": "system", "content": "Be brief."}, *conversation.messages]
    for end in (2, 4, 6):
        assert fresh_answer(pair, messages[:end]) == messages[end]["content"]
    assert fresh_answer(pair, messages[3:6]) != messages[6]["content"]


def test_a_turn_reads_only_what_is_new(pair, monkeypatch):
    import mlx_lm

    read = []
    original = mlx_lm.stream_generate

    def counted(model, tokenizer, prompt, **rest):
        read.append(len(prompt))
        return original(model, tokenizer, prompt, **rest)

    monkeypatch.setattr(mlx_lm, "stream_generate", counted)
    conversation = Conversation(pair, SHORT)
    say(conversation, "a long enough beginning")
    say(conversation, "more")
    assert read[0] == 3 + len("a long enough beginning") + 1
    assert read[1] in (7, 8)  # [end] user m o r e end assistant


def test_the_base_answers_beside_and_leaves_no_trace(pair):
    conversation = Conversation(pair, SHORT)
    adapted = say(conversation, "hello")
    before = list(conversation.messages)
    base = "".join(piece.text for piece in conversation.ask_base())
    assert base != adapted
    assert conversation.messages == before
    again = "".join(piece.text for piece in conversation.ask_base())
    assert again == base


def test_the_oldest_turns_go_when_the_context_is_full(pair):
    conversation = Conversation(pair, SHORT, "System.")
    for index in range(8):
        say(conversation, f"message {index} " + "x" * 30)
        assert conversation.turn.prompt_tokens + conversation.turn.answer_tokens <= pair.context
    assert conversation.turn.forgotten >= 2
    assert conversation.turn.forgotten % 2 == 0
    assert len(conversation.messages) == 16
    tokens, first = conversation.fit(conversation.messages[:-1])
    assert pair.tokenizer.decode(tokens).startswith("<s><|system|>System.")
    assert conversation.messages[first]["role"] == "user"


def test_a_message_beyond_the_context_is_refused_and_not_kept(pair):
    conversation = Conversation(pair, SHORT)
    say(conversation, "hello")
    with pytest.raises(ConfigError, match="shorten it"):
        say(conversation, "x" * 300)
    assert len(conversation.messages) == 2


def test_an_answer_ends_with_the_context(pair):
    conversation = Conversation(pair, Sampling(max_tokens=10_000))
    say(conversation, "x" * 150)
    turn = conversation.turn
    if turn.finish == "length":
        assert turn.full
        assert turn.prompt_tokens + turn.answer_tokens == pair.context


def test_stopping_keeps_what_was_said_and_the_next_turn_is_right(pair):
    conversation = Conversation(pair, SHORT)
    list(conversation.ask("hello", lambda: True))  # while the prompt is read: the turn is dropped
    assert (conversation.turn.finish, conversation.messages) == ("interrupted", [])
    seen = []
    seen.extend(conversation.ask("hello", lambda: len(seen) >= 2))
    assert conversation.turn.finish == "interrupted"
    assert conversation.turn.answer_tokens == 3
    say(conversation, "again")
    assert fresh_answer(pair, conversation.messages[:3]) == conversation.messages[3]["content"]


def test_a_saved_conversation_is_a_record_and_goes_on_where_it_was(pair, tmp_path):
    conversation = Conversation(pair, SHORT, "Be brief.")
    say(conversation, "hello")
    conversation.save(tmp_path / "talk.json")
    again = Conversation(pair, SHORT)
    again.load(tmp_path / "talk.json")
    assert (again.system, again.messages) == (conversation.system, conversation.messages)
    assert say(again, "more") == say(conversation, "more")
    messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
    (tmp_path / "records.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    assert load_records([tmp_path / "records.jsonl"])[0].completion() == conversation.messages[1]["content"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no json", "not JSON"),
        ("{}", "no list"),
        ('{"messages": [1]}', "message 1"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "robot"),
        ('{"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]}', "message 2"),
    ],
)
def test_what_is_no_conversation_is_refused(pair, tmp_path, text, said):
    (tmp_path / "talk.json").write_text(text)
    with pytest.raises(ConfigError, match=said):
        Conversation(pair).load(tmp_path / "talk.json")


def test_a_system_prompt_the_template_refuses_is_not_set(pair, monkeypatch):
    conversation = Conversation(pair, SHORT)
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    monkeypatch.setattr(pair.tokenizer._tokenizer, "chat_template", template)
    with pytest.raises(ConfigError, match="no system"):
        conversation.set_system("hello")
    assert conversation.system == ""

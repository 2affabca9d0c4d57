"""From records to tokens and masks: what is trained is what the assistant says, whatever the template does."""

import pytest
from toys import CHATML, byte_tokenizer, spaced_tokenizer, wrapped

from mlx_hybrid.errors import DataError
from mlx_hybrid.records.record import Record
from mlx_hybrid.records.template import make_example, make_examples

END = "<|im_end|>"
HEAD = "<|im_start|>{{ m['role'] }}\n"
TEMPLATES = {
    "chatml": CHATML,
    "strips": "{% for m in messages %}" + HEAD + "{{ m['content'] | trim }}<|im_end|>\n{% endfor %}",
    "default system": "<|im_start|>system\nBe brief, yes.<|im_end|>\n" + CHATML,
    "thinks in the last turn only": (  # not a prefix of itself: the tags go when a turn grows old
        "{% for m in messages %}" + HEAD + "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n"
        "{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "thinks in the prompt": CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"),
    "drops the system turn": CHATML.replace("in messages", "in messages if m['role'] != 'system'"),
    "squeezes the user": (
        "{% for m in messages %}" + HEAD + "{% if m['role'] == 'assistant' %}{{ m['content'] }}{% else %}"
        "{{ m['content'].split() | join(' ') }}{% endif %}<|im_end|>\n{% endfor %}"
    ),
    "system inside the user turn": (
        "{% for m in messages if m['role'] != 'system' %}" + HEAD +
        "{% if loop.first and messages[0]['role'] == 'system' %}"
        "{{ messages[0]['content'] }}\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    ),
}  # fmt: skip

CONVERSATIONS = {
    "one turn": [("user", "Is it?"), ("assistant", "It is.")],
    "the answer is a word of the question": [("user", "yes or no?"), ("assistant", "yes")],
    "answers repeat": [("user", "no  or yes?"), ("assistant", "no"), ("user", "no  or yes?"), ("assistant", "no")],
    "the answer is in the system turn": [("system", "say yes"), ("user", "say yes"), ("assistant", "say yes")],
    "the answer looks like the template": [
        ("user", "a"), ("assistant", "user\nassistant\n"), ("user", "assistant"), ("assistant", "b")],
    "spaces around": [("user", " a "), ("assistant", " b\n"), ("user", "c"), ("assistant", "\td")],
    "many scripts": [("user", "如何?"), ("assistant", "नमस्ते 🙂"), ("user", "كيف"), ("assistant", "ជំរាបសួរ")],
}  # fmt: skip


def record(turns, line: int = 3, **fields) -> Record:
    messages = [turn if isinstance(turn, dict) else dict(zip(("role", "content"), turn)) for turn in turns]
    return Record({"messages": messages, **fields}, "data.jsonl", line)


def pieces(example, tokenizer) -> list[str]:
    """Each stretch of trained tokens as text."""
    found, previous = [], False
    for token, trained in zip(example.tokens, example.trained, strict=True):
        if trained:
            found = found if previous else [*found, []]
            found[-1].append(token)
        previous = trained
    return [tokenizer.decode(stretch) for stretch in found]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_every_assistant_turn_and_its_end_is_trained_and_nothing_else(template, conversation):
    tokenizer = wrapped(byte_tokenizer(TEMPLATES[template]))
    turns = CONVERSATIONS[conversation]
    example = make_example(record(turns), tokenizer)
    answers = [text.strip() if template == "strips" else text for role, text in turns if role == "assistant"]
    assert pieces(example, tokenizer) == [answer + END for answer in answers]
    messages = [{"role": role, "content": text} for role, text in turns]
    assert tokenizer.decode(example.tokens) == tokenizer.apply_chat_template(messages, tokenize=False)
    assert example.where == "data.jsonl:3"
    assert example.text_bytes == sum(len((answer + END).encode()) for answer in answers)


def test_a_tool_call_is_trained_and_the_tool_s_answer_is_not():
    template = (
        "{% for m in messages %}" + HEAD + "{% if m['content'] %}{{ m['content'] }}{% endif %}"
        "{% for c in m.get('tool_calls') or [] %}<call>{{ c['function']['name'] }}</call>{% endfor %}"
        "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )  # fmt: skip
    tokenizer = wrapped(byte_tokenizer(template))
    calls = [{"type": "function", "function": {"name": "weather", "arguments": {}}}]
    for content in (None, "", "Let me look."):
        turns = [
            ("user", "Rain?"), {"role": "assistant", "content": content, "tool_calls": calls},
            ("tool", "sunny"), ("assistant", "No."),
        ]  # fmt: skip
        example = make_example(record(turns), tokenizer)
        assert pieces(example, tokenizer) == [f"{content or ''}<call>weather</call>{END}", f"No.{END}"]


@pytest.mark.parametrize("completion", ["yes", " yes", "no yes"])
def test_a_tokenizer_that_adds_a_leading_space(completion):
    tokenizer = wrapped(spaced_tokenizer())
    turns = [("user", "yes or no?"), ("assistant", completion), ("user", "no"), ("assistant", "yes no")]
    example = make_example(record(turns), tokenizer)
    trained = [piece.strip() for piece in pieces(example, tokenizer)]
    assert trained == [completion.strip() + END, "yes no" + END]
    messages = [{"role": role, "content": text} for role, text in turns]
    whole = tokenizer.encode(
        tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False
    )
    assert tokenizer.decode(example.tokens) == tokenizer.decode(whole)


def test_masks_do_not_need_mlx_lm_s_wrapper():
    for make in (byte_tokenizer, spaced_tokenizer):
        example = make_example(record([("user", "no"), ("assistant", "yes")]), make())
        assert pieces(example, make())[0].strip() == "yes" + END


def test_a_prompt_and_its_completion_without_a_template():
    tokenizer = wrapped(byte_tokenizer(None))
    example = make_example(Record({"prompt": "2 + 2 =", "completion": " 4"}, "d", 1), tokenizer)
    assert tokenizer.decode(example.tokens) == "<s>2 + 2 = 4" + END
    assert pieces(example, tokenizer) == [" 4" + END]
    with pytest.raises(DataError, match=r"data.jsonl:3: the model has no chat template"):
        make_example(
            record([("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]), tokenizer
        )


def test_of_plain_text_every_token_is_trained_but_the_first(tokenizer):
    example = make_example(Record({"text": "Habari ya asubuhi"}, "d", 1), tokenizer)
    assert tokenizer.decode(example.tokens) == "<s>Habari ya asubuhi" + END
    assert example.trained == [False] + [True] * (len(example.tokens) - 1)
    assert example.trained_count == len(example.tokens) - 1


def test_a_template_that_changes_what_the_assistant_says_is_refused():
    tokenizer = wrapped(byte_tokenizer(CHATML.replace("m['content']", "m['content'] | upper")))
    with pytest.raises(
        DataError, match=r"data.jsonl:3: the model's chat template changes the text of turn 2"
    ):
        make_example(record([("user", "a"), ("assistant", "yes")]), tokenizer)


def test_where_an_answer_stands_is_never_guessed():
    """This template rewrites every content, and the answer also stands in the question."""
    rewritten = CHATML.replace("m['content']", "m['content'] | replace('(', '[') | replace('⁅', '(')")
    tokenizer = wrapped(byte_tokenizer(rewritten))
    with pytest.raises(DataError, match="turn 2"):
        make_example(record([("user", "is it (no or yes)?"), ("assistant", "no")]), tokenizer)


def test_thinking_that_the_template_writes_anew_is_found():
    template = (
        "{% for m in messages %}" + HEAD + "{% if m['role'] == 'assistant' %}"
        "{% if '</think>' in m['content'] %}{{ m['content'] }}{% else %}<think>\n\n</think>\n\n"
        "{{ m['content'] }}{% endif %}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    )  # fmt: skip
    tokenizer = wrapped(byte_tokenizer(template))
    answer = "<think>\nTwo and two.\n</think>\n\n4"
    example = make_example(record([("user", "4?"), ("assistant", answer)]), tokenizer)
    assert pieces(example, tokenizer) == [answer + END]


def test_a_template_that_refuses_says_why():
    tokenizer = wrapped(byte_tokenizer("{{ raise_exception('no system role here') }}"))
    with pytest.raises(DataError, match=r"data.jsonl:3: .* refuses the conversation \(no system role here\)"):
        make_example(record([("user", "a"), ("assistant", "b")]), tokenizer)


def test_too_long_is_an_error_a_drop_or_a_cut(tokenizer):
    long, short = (
        record([("user", "u"), ("assistant", "x" * 50)], 1),
        record([("user", "u"), ("assistant", "y")], 2),
    )
    limit = len(make_example(short, tokenizer).tokens) + 2
    with pytest.raises(
        DataError,
        match=rf"1 record is over the limit of {limit} tokens: data.jsonl:1 .*; raise train.max_tokens",
    ):
        make_examples([long, short], tokenizer, max_tokens=limit)
    kept, dropped = make_examples([long, short], tokenizer, max_tokens=limit, too_long="drop")
    assert ([example.where for example in kept], dropped) == (["data.jsonl:2"], 1)
    kept, dropped = make_examples([long, short], tokenizer, max_tokens=limit, too_long="truncate")
    whole = make_example(long, tokenizer)
    assert (kept[0].tokens, kept[0].trained) == (whole.tokens[:limit], whole.trained[:limit])
    assert (len(kept), dropped) == (2, 1)


def test_records_with_nothing_left_to_train_are_all_told(tokenizer):
    records = [record([("user", "u" * 90), ("assistant", "a")], line) for line in range(1, 9)]
    with pytest.raises(DataError) as error:
        make_examples(records, tokenizer, max_tokens=40, too_long="truncate")
    text = str(error.value)
    assert "data.jsonl:1: no token is left to train on" in text
    assert "data.jsonl:5" in text
    assert "data.jsonl:6" not in text
    assert "3 more records" in text
    assert error.value.exit_code == 3

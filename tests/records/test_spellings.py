"""Records as people have them: marks, ends, tool calls and reasoning in every spelling, each trained once or named."""

import json

import pytest
from chat_templates import TEMPLATES
from test_examples import AGAIN, CALL, CALLED, END, SHAPES, TOOL, USER, pieces, record
from toys import byte_tokenizer, wrapped

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.records.examples import asked_tokens, make_example, make_examples, question_tokens
from mlx_hybrid.records.record import Record, parse_line

TWO = {"content": "yes", "tool_calls": [CALL, {"function": {"name": "i", "arguments": {}}}]}
ODD_ANSWERS = {
    "a string mark": ({"content": "yes", "weight": "0"}, "marked as not to be trained"),
    "a float mark": ({"content": "yes", "weight": 0.0}, "marked as not to be trained"),
    "a word": ({"content": "yes", "train": "False"}, "marked as not to be trained"),
    "a turn without loss": ({"content": "yes", "loss": False}, "marked as not to be trained"),
    "an untrainable turn": ({"content": "yes", "trainable": "false"}, "marked as not to be trained"),
    "half a weight": ({"content": "yes", "weight": 0.5}, "turn 2 has weight 0.5, which is neither 0 nor 1"),
    "nothing but an end": ({"content": f"{END}\n"}, "every answer is empty"),
    "a call without a name": ({"tool_calls": [{"function": {}}]}, "without the name"),
    "arguments cut short": (
        {"tool_calls": [{"function": {"name": "f", "arguments": '{"a": '}}]}, "calls f with arguments that are no"),
    "one call of two": (TWO, "leaves out the text"),
    "one call of two, no text": (TWO | {"content": None}, "leaves out a tool call of turn 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD_ANSWERS)
def test_an_answer_that_cannot_be_trained_is_set_aside_by_name(case):
    turn, why = ODD_ANSWERS[case]
    tokenizer = wrapped(byte_tokenizer(TEMPLATES["dated"]))
    made = make_examples([record([USER, {"role": "assistant", **turn}])], tokenizer, max_tokens=512)
    assert (made.examples, why in made.aside[0][1]) == ([], True), made


@pytest.mark.parametrize("call", [
    CALL, CALL["function"], CALL | {"function": {"name": "weather", "arguments": {"city": "Oslo"}}}
])  # fmt: skip
@pytest.mark.parametrize("written", [lambda calls: calls, lambda calls: json.dumps(calls)])
def test_a_tool_call_is_trained_the_same_however_it_is_written(call, written):
    def trained(template: str, calls: list, content: str | None = None, **fields) -> list[str]:
        turns = [USER, {"role": "assistant", "content": content, "tool_calls": written(calls)}]
        item = parse_line(json.dumps({"messages": turns, **fields}).encode(), "data.jsonl", 3)
        tokenizer = wrapped(byte_tokenizer(TEMPLATES[template]))
        return pieces(make_example(item, tokenizer), tokenizer)

    assert trained("calls", [call]) == [CALLED["calls"] + END]
    assert '"arguments": {}}' in trained("calls", [{"function": {"name": "weather", "arguments": ""}}])[0]
    assert trained("dated", [], "yes", tools="[]") == ["yes" + END]


@pytest.mark.parametrize("ends", [END, END * 2, f" {END} {END}\n"])
def test_older_answers_with_their_ends_are_asked_after_as_they_are_trained(ends):
    tokenizer = wrapped(byte_tokenizer(TEMPLATES["thinks"]), options={"enable_thinking": False})
    item = record([USER, ("assistant", f"no{ends}"), AGAIN, ("assistant", "yes")])
    example = make_example(item, tokenizer)
    asked = asked_tokens(item, tokenizer)
    assert example.tokens[: example.trained.index(True)] == asked == question_tokens(item, tokenizer)


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("reads", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_found_under_whatever_name_the_template_reads(key, reads):
    tokenizer = wrapped(byte_tokenizer(TEMPLATES["thinks"].replace("reasoning_content", reads)))
    turn = {"role": "assistant", "content": "yes", key: "hm."}
    assert pieces(make_example(record([USER, turn]), tokenizer), tokenizer) == [
        "<think>\nhm.\n</think>\n\nyes" + END
    ]


UNWRITTEN = {
    "nothing": ("thinks", {}, SHAPES["reasoning in its key"], ()),
    "reasoning in its key": ("chatml", {}, SHAPES["reasoning in its key"], ("reasoning",)),
    "older reasoning": (
        "chatml", {}, [USER, {"role": "assistant", "content": "no", "thinking": "hm."}, *SHAPES["plain"]],
        ("the reasoning of older answers",)),
    "reasoning beside a call": (
        "calls", {}, [USER, {"role": "assistant", "content": None, "reasoning": "hm.", "tool_calls": [CALL]}],
        ("reasoning",)),
    "tools, though a call names one": (
        "dated", {"tools": [TOOL]}, [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
        ("the tools",)),
    "without a template": (
        "none", {"tools": [TOOL]}, [USER, {"role": "assistant", "content": "yes", "thinking": "hm."}],
        ("reasoning", "the tools")),
}  # fmt: skip


@pytest.mark.parametrize("case", UNWRITTEN)
def test_what_the_template_leaves_out_is_named(case):
    template, fields, turns, missing = UNWRITTEN[case]
    example = make_example(record(turns, **fields), wrapped(byte_tokenizer(TEMPLATES[template])))
    assert example.unwritten == missing


@pytest.mark.parametrize("option", ["role", "content", "loop", "bos_token", "strftime_now", "nothing"])
def test_an_option_that_the_template_does_not_read_is_refused(option):
    tokenizer = wrapped(byte_tokenizer("{{ bos_token }}" + TEMPLATES["thinks"]))
    with pytest.raises(ConfigError, match=f"no option {option}"):
        tokenizer.ask([USER], options={option: True})
    assert tokenizer.ask([USER], options={"enable_thinking": False})


def test_a_system_turn_is_folded_into_a_user_turn_alone():
    tokenizer = wrapped(byte_tokenizer(), system="fold")
    turns = [{"role": "system", "content": "say yes"}, {"role": "assistant", "content": "no"}, USER]
    assert "system\nsay yes" in tokenizer.render(turns)


OWN_ENDS = [
    "{}",
    "<s>{}",
    "{}<|im_end|>",
    "<s><s>{}",
    " <s> <s>{}",
    "{}<|im_end|>\n",
    "<s>{} <|im_end|> <|im_end|> \n",
]


@pytest.mark.parametrize("own", OWN_ENDS)
@pytest.mark.parametrize("adds", [True, False])
def test_ends_that_an_author_wrote_stand_once(own, adds):
    tokenizer = wrapped(byte_tokenizer(None, begins=adds))
    begin = "<s>" if adds or "<s>" in own else ""
    text = make_example(Record({"text": own.format("Habari")}, "d", 1), tokenizer)
    assert tokenizer.decode(text.tokens) == f"{begin}Habari{END}"
    assert tokenizer.bare(own.format("Habari")) == "Habari"
    assert text.trained == [not (adds and i == 0) for i in range(len(text.tokens))]
    asked = own.format("Habari").split("<|im")[0]
    assert tokenizer.continued(asked.rstrip()) == text.tokens[:-1]
    prompt = Record({"prompt": asked, "completion": own.format("yes")}, "d", 1)
    if adds:
        example = make_example(prompt, tokenizer)
        assert pieces(example, tokenizer) == ["yes" + END]
        assert example.tokens[: example.trained.index(True)] == asked_tokens(prompt, tokenizer)
        assert example.tokens.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("text", ["<s>", END, f" <s> {END}{END}\n"])
def test_a_text_of_nothing_but_ends_is_set_aside(text):
    made = make_examples([Record({"text": text}, "d", 1)], wrapped(byte_tokenizer(None)), max_tokens=9)
    assert made.aside == [("d:1", "the text is empty but for its beginning and end")]


@pytest.mark.parametrize("fields", [
    {"prompt": f"yes {END} no", "completion": "yes"}, {"prompt": "yes", "completion": f"yes {END} no"}
])  # fmt: skip
def test_a_control_token_without_a_template_is_named(fields):
    made = make_examples([Record(fields, "d", 1)], wrapped(byte_tokenizer(None)), max_tokens=99)
    assert "holds the control token <|im_end|>" in made.aside[0][1]

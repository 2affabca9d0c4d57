"""The loss mask of a conversation: trained are the answers that its template writes after the generation prompt.

An answer begins where rendered(turns before it, generation prompt), a prefix of rendered(all), ends, and goes to the
end of its turn.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.records.fields import REASONING, from_json
from mlx_hybrid.records.record import Record

MARKS = ("weight", "train", "training", "trainable", "loss")
YES, NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")


class SetAside(DataError):
    """A record that cannot be trained as it would be asked; its reason names no place."""


@dataclass(frozen=True)
class Example:
    """One record as tokens; `trained[i]` says whether token i is learnt."""

    tokens: list[int]
    trained: list[bool]
    where: str = ""
    language: str = ""
    context_answers: int = 0  # those that are context only: the template writes them otherwise than it asks
    unwritten: tuple[str, ...] = ()  # what the template leaves out: reasoning, tools, system turn
    weights: tuple[float, ...] = ()
    """What each token's loss counts, where some of the prompt is learnt a little too; 1 or 0 by `trained` otherwise."""
    # sha256 of the record's fields: what a run is known by, whatever date its template writes
    digest: str = ""
    label: str = ""

    @property
    def trained_count(self) -> int:
        """Targets: a first token is never one."""
        return sum(self.trained[1:])


def tokenise(
    parts: list[tuple[str, bool]], tokenizer: Any, asked: list[int], *, close: bool
) -> tuple[list[int], list[bool]]:
    """Tokens and mask of text in parts, trained or not, of which the first is asked as the tokens `asked`; `close` adds
    the EOS token where no template writes it.

    Parts are tokenised one by one, as generation meets them. Where that spells another text (some tokenizers put a
    space before every text) the whole's tokens are placed by the middle of their offsets; SetAside if they do not begin
    with those asked.
    """
    pieces = [asked, *(tokenizer.tokens_of(text) for text, _ in parts[1:])]
    tokens, text = [*chain(*pieces)], "".join(text for text, _ in parts)
    trained = [kept for (_, kept), piece in zip(parts, pieces, strict=True) for _ in piece]
    whole = tokenizer.begun(tokenizer.tokens_of(text))
    if tokens != whole and tokenizer.decode(tokens) != tokenizer.decode(whole):
        spelt = tokenizer._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        kept = [flag for part, flag in parts for _ in part]
        mask = [b > a and kept[(a + b) // 2] for a, b in spelt["offset_mapping"]]
        tokens, trained = whole, [False] * (len(whole) - len(mask)) + mask
        if len(trained) != len(whole) or whole[: len(asked)] != asked or trained.index(True) != len(asked):
            raise SetAside("its tokens cannot be parted where the answer begins")
    tokens = tokenizer.ended(tokens) if close else tokens
    return tokens, [*trained, True][: len(tokens)]


def plain_turn(turn: dict, place: int, tokenizer: Any) -> dict:
    """A turn without empty keys, marks of ours and ends of its author's; reasoning under each of its names, so that a
    template finds it, and tool calls in OpenAI's form."""
    kept = {key: value for key, value in turn.items() if value not in (None, []) and key not in MARKS}
    if reasoning := next((kept[name] for name in REASONING if isinstance(kept.get(name), str)), ""):
        kept |= dict.fromkeys(REASONING, reasoning)
    if calls := plain_calls(kept.pop("tool_calls", []), place):
        kept = {"content": "", **kept, "tool_calls": calls}
    if turn["role"] == "assistant" and kept.get("content"):
        kept["content"] = tokenizer.answer(kept["content"])
    return kept


def plain_calls(calls: list[dict], place: int) -> list[dict]:
    """Tool calls in OpenAI's form, arguments as a mapping: parsed once where they were written as a JSON string."""
    found = []
    for call in calls:
        function = call.get("function", {key: call[key] for key in ("name", "arguments") if key in call})
        if not isinstance(function.get("name"), str):
            raise SetAside(f"turn {place} has a tool call without the name of its function")
        arguments = from_json(function.get("arguments"))
        if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
            arguments = {}
        if not isinstance(arguments, dict):
            raise SetAside(f"turn {place} calls {function['name']} with arguments that are no JSON object")
        rest = {key: value for key, value in call.items() if key not in ("name", "arguments")}
        found.append({"type": "function", **rest, "function": {**function, "arguments": arguments}})
    return found


def is_marked(turn: dict, place: int) -> bool:
    """Whether an answer's marks, if it has any, say that it is to be trained. Raises SetAside for other values."""
    own = {key: turn[key] for key in MARKS if turn.get(key) is not None}
    # A number under `loss` is one that somebody measured.
    marks = {k: str(v).strip().lower() for k, v in own.items() if k != "loss" or isinstance(v, bool)}
    if odd := next((key for key, value in marks.items() if value not in (*YES, *NO)), None):
        raise SetAside(f"turn {place} has {odd} {turn[odd]!r:.20}, which is neither 0 nor 1")
    return not any(value in NO for value in marks.values())


@dataclass(frozen=True)
class Conversation:
    """Turns, which of them are to be trained, and the tools they are told of, for a model's template to write."""

    turns: list[dict]
    wanted: list[int]
    tools: list[dict] | None
    tokenizer: Any

    @classmethod
    def of(cls, record: Record, tokenizer: Any) -> "Conversation":
        """A record's, without turns where it is plain text; SetAside for odd marks and calls."""
        told = record.turns()
        turns = [plain_turn(turn, place, tokenizer) for place, turn in enumerate(told, start=1)]
        answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
        marked = [place for place in answers if is_marked(told[place], place + 1)]
        says = ("content", "tool_calls", "reasoning_content")
        wanted = [place for place in marked if any(turns[place].get(key) for key in says)]
        return cls(turns, wanted, record.fields.get("tools") or None, tokenizer)

    def before(self, number: int) -> list[int]:
        """What chat would send before a turn."""
        if self.tokenizer.has_chat_template:
            return self.tokenizer.ask(self.turns[:number], tools=self.tools)
        return self.tokenizer.continued(self.turns[number - 1]["content"])

    def written(self, end: int | None = None, *, opened: bool = False) -> str:
        """The turns up to `end`, or all, in the template; `opened`, with the beginning of an answer."""
        return self.tokenizer.render(self.turns[:end], tools=self.tools, opened=opened)

    @cached_property
    def full(self) -> str:
        return self.written()

    def masked(self) -> Example:
        """The tokens, with the wanted answers trained as far as they are asked for."""
        if not self.tokenizer.has_chat_template:
            return self.bare_pair()
        try:
            spans, full = self.spans(), self.full
            parts, cursor = [], 0
            for _, begin, end in spans:
                parts += [(full[cursor:begin], False), (full[begin:end], True)]
                cursor = end
            is_last, ends = spans[-1][0] == len(self.turns) - 1, tuple(self.tokenizer.end_markers)
            close = is_last and not parts[-1][0].endswith(ends)
            parts += [] if close else [(full[cursor:], False)]
            return Example(
                *tokenise(parts, self.tokenizer, self.tokenizer.opened(full[: spans[0][1]]), close=close),
                context_answers=len(self.wanted) - len(spans),
                unwritten=self.unwritten(spans),
            )
        except ConfigError as error:
            raise SetAside(str(error)) from None

    def bare_pair(self) -> Example:
        """For a model without a chat template: a prompt and its completion as they are."""
        texts = [turn.get("content") for turn in self.turns]
        if len(texts) != 2 or not all(isinstance(t, str) for t in texts) or self.turns[1].get("tool_calls"):
            raise SetAside("no chat template, so only a prompt and its answer as text can be used")
        (prompt, answer), tokenizer = texts, self.tokenizer
        said = (tokenizer.bare(prompt), answer)
        if found := [name for text in said for name in tokenizer.control_tokens if name in text]:
            why = "which a model without a chat template would not read as text; a record with `text` may hold it"
            raise SetAside(f"its text holds the control token {found[0]}, {why}")
        parts = [(tokenizer.once(prompt), False), (answer, True)]
        made = tokenise(parts, tokenizer, tokenizer.continued(prompt), close=True)
        left_out = {"reasoning": self.turns[1].get("reasoning_content"), "the tools": self.tools}
        missing = tuple(name for name, value in left_out.items() if value)
        return Example(*made, unwritten=missing)

    def spans(self) -> list[tuple[int, int, int]]:
        """(turn, begin, end) in the rendered text of every wanted answer that is written as it is asked for."""
        full, spans = self.full, []
        for number in self.wanted:
            asked = self.written(number, opened=True)
            if full.startswith(asked):
                end = self.end_of(number, len(asked))
                if self.said(number) not in full[len(asked) : end]:
                    raise SetAside(f"the chat template changes or leaves out the text of turn {number + 1}")
                if self.leaves_out_a_call(number):
                    raise SetAside(f"the chat template leaves out a tool call of turn {number + 1}")
                spans.append((number, len(asked), end))
        if not spans:
            asked = self.written(self.wanted[-1], opened=True)[-40:]
            way = ", or model.system=fold" if self.turns[0]["role"] == "system" else ""
            told = f"the chat template does not write answers as it asks for them (it asks with {asked!r})"
            raise SetAside(f"{told}; see model.template{way}")
        return spans

    def end_of(self, number: int, begin: int) -> int:
        """Where the answer that begins at `begin` ends, with its end of turn where the template writes one."""
        bound, content = self.next_turn(number, begin), self.said(number)
        found = ((self.full.find(mark, begin, bound), -len(mark)) for mark in self.tokenizer.end_markers)
        if ends := [(at, length) for at, length in found if at >= 0]:
            at, length = min(ends)
            return at - length
        at = self.full.rfind(content, begin, bound) if content else -1
        if at < 0:
            raise SetAside(f"the chat template does not show where turn {number + 1} ends")
        return at + len(content)

    def next_turn(self, number: int, begin: int) -> int:
        """Where the text after a turn begins, at the latest."""
        if number == len(self.turns) - 1:
            return len(self.full)
        after = self.written(number + 1)
        if self.full.startswith(after):
            return len(after)
        later = range(number + 1, len(self.turns))
        content = next((self.said(place) for place in later if self.turns[place].get("content")), "")
        at = self.full.find(content, begin + len(self.said(number))) if content else -1
        return at if at >= 0 else len(self.full)

    def said(self, number: int) -> str:
        """What of an answer every template must write: its content after the reasoning."""
        content = self.turns[number].get("content") or ""
        return self.tokenizer.marked(content.rpartition("</think>")[2].strip())

    def leaves_out_a_call(self, number: int) -> bool:
        """Whether the template writes a turn no otherwise without one of its tool calls."""
        turn, before = self.turns[number], self.turns[:number]
        calls = turn.get("tool_calls", [])
        for place in range(len(calls)):
            fewer = turn | {"tool_calls": calls[:place] + calls[place + 1 :]}
            if len(calls) == 1:
                del fewer["tool_calls"]
            with suppress(ConfigError):  # refused without the call, so the call counts
                if self.tokenizer.render([*before, fewer], tools=self.tools) == self.written(number + 1):
                    return True
        return False

    def unwritten(self, spans: list[tuple[int, int, int]]) -> tuple[str, ...]:
        """What the template leaves out, in words."""
        missing = []
        for number, begin, end in spans:
            turn = self.turns[number]
            thought = (turn.get("content") or "").rpartition("</think>")[0].rpartition("<think>")[2]
            reasoning = (turn.get("reasoning_content") or thought).strip()
            if self.tokenizer.marked(reasoning) not in self.full[begin:end]:
                missing.append("reasoning" if turn is self.turns[-1] else "the reasoning of older answers")
        if self.tools and self.tokenizer.render(self.turns) == self.full:
            missing.append("the tools")
        system = self.turns[0].get("content", "").strip() if self.turns[0]["role"] == "system" else ""
        if self.tokenizer.marked(system) not in self.full:
            missing.append("the system turn")
        return tuple(dict.fromkeys(missing))

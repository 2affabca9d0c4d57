"""The tokenizer of a model, and the one place that says how its texts begin and end: each once, as the tokenizer (BOS,
EOS) or the chat template (of a turn) has it."""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from jinja2 import Environment, TemplateSyntaxError, meta
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.models.templates import unnamed_end

# stands inside a control token that is to be read as text; Unicode keeps it out of every text
MARK = "\ufdd0"
NOW = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
Options = Mapping[str, Any]
NO_OPTIONS: Options = MappingProxyType({})
# what a template is told by the program itself, beside the texts of its special tokens
RESERVED = {"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"}
# a block of transformers' own, which writes nothing
GENERATION = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")
THINKING = ("<think>", "</think>")  # control tokens that an answer's own text may hold


class Tokenizer(TokenizerWrapper):
    """mlx-lm's tokenizer with the template settings of a run: `options` go to the chat template, `system: fold` puts a
    system turn into the first user turn, `date` is what a template is told, `given` a template in place of that in
    `folder`, `vocabulary` the number of embedding rows: a token beyond them would be read from foreign memory."""

    options: Options = NO_OPTIONS
    system: Literal["keep", "fold"] = "keep"
    date: datetime.date | None = None
    vocabulary: int | None = None
    folder: Path | None = None
    given: str = ""

    def __init__(self, wrapped: TokenizerWrapper, **settings: Any) -> None:
        self.__dict__.update(wrapped.__dict__ | settings)

    def use_template(self, text: str) -> None:
        """Write conversations so. Raises ConfigError for a template that writes no answer, or none with an end."""
        self.__dict__ |= {"given": text, "has_chat_template": True, "_chat_template": None}
        self._tokenizer.chat_template = text
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        if not self.render(turns).count("!"):
            raise ConfigError("The chat template does not write an answer; give another with --template.")
        if end := self.folder and unnamed_end(self, self.folder):
            self.add_eos_token(end)
        elif end == "" or not self.eos_token_ids:
            told = "ends an answer with no token of this model's, so answers would have no end"
            raise ConfigError(f"The chat template {told}; give another with --template.")

    @cached_property
    def _begin(self) -> list[int]:
        bare, whole = self._encode("a"), list(self._tokenizer.encode("a", add_special_tokens=True))
        starts = [i for i in range(len(whole)) if whole[i : i + len(bare)] == bare]
        return whole[: starts[0]] if starts else []

    def begun(self, tokens: list[int]) -> list[int]:
        """The tokens with what the tokenizer puts before a text, unless it stands there."""
        return tokens if tokens[: len(self._begin)] == self._begin else [*self._begin, *tokens]

    def started(self, text: str) -> list[int]:
        """Tokens of a text, begun once: BOS tokens that its author put first are its beginning, not text."""
        return self.begun(self._encode(self.once(text)))

    def once(self, text: str) -> str:
        """A text that begins with BOS once where its author wrote it several times."""
        rest = self._without_begin(text)
        return text if rest == text else f"{self.bos_token}{rest}"

    def document(self, text: str) -> list[int]:
        """A whole text as it is trained: begun, and ended with EOS; ends that the text has itself are not doubled."""
        return self.ended(self.started(self.without_ends(text, [self.eos_token])))

    def bare(self, text: str) -> str:
        """A text without the BOS and EOS that its author wrote around it."""
        return self._without_begin(self.without_ends(text, [self.eos_token]))

    def answer(self, text: str) -> str:
        """An answer without the BOS and the ends that its author wrote around it; it gets its own end."""
        text = self.without_ends(text, self.end_markers)
        return self._without_begin(text) if self._begin else text

    def without_ends(self, text: str, markers: Sequence[str | None]) -> str:
        """A text without the markers at its end, and the white space around them."""
        stripped, ends = text.rstrip(), tuple(marker for marker in markers if marker)
        while marker := next((marker for marker in ends if stripped.endswith(marker)), None):
            text = stripped = stripped.removesuffix(marker).rstrip()
        return text

    def _without_begin(self, text: str) -> str:
        return re.sub(rf"\A(\s*{re.escape(self.bos_token)})+", "", text) if self.bos_token else text

    def ended(self, tokens: list[int]) -> list[int]:
        """The tokens with one EOS token at their end."""
        while (end := self.eos_token_id) is not None and tokens and tokens[-1] == end:
            tokens = tokens[:-1]
        return tokens if end is None else [*tokens, end]

    def continued(self, text: str) -> list[int]:
        """Text that the model is to go on with: begun, not ended. Raises ConfigError for no token at all."""
        if tokens := self.checked(self.started(text)):
            return tokens
        raise ConfigError("The prompt is empty, and this model needs at least one token to continue.")

    @property
    def end_markers(self) -> list[str]:
        """The texts of the tokens that end a turn or a document."""
        ids = {*self.eos_token_ids, self.eos_token_id} - {None}
        return [text for text in map(self.convert_ids_to_tokens, sorted(ids)) if text]

    @property
    def identity(self) -> str:
        """What decides which tokens a record becomes: vocabulary, beginnings and ends, template and its options."""
        template = getattr(self._tokenizer, "chat_template", None)
        facts = [len(self), self._begin, self.end_markers, template, dict(self.options), self.system]
        return json.dumps(facts, sort_keys=True, default=str)

    def ask(self, messages: list[dict], **how: Any) -> list[int]:
        """A conversation as tokens, up to where the answer begins. Raises ConfigError where that cannot be."""
        if not self.has_chat_template:
            way = "--template plain gives it one, and `mlx-hybrid generate --raw` continues a text."
            raise ConfigError(f"The model has no chat template, so it cannot chat; {way}")
        return self.opened(self.render(messages, opened=True, **how))

    def opened(self, text: str) -> list[int]:
        """Tokens of a conversation that was rendered up to where an answer begins."""
        return self.checked(self.begun(self.tokens_of(text)))

    def render(
        self, messages: list[dict], *, tools: Any = None, opened: bool = False, options: Options = NO_OPTIONS
    ) -> str:
        """A conversation as the template writes it; `opened`, with the beginning of an answer. Control tokens in the
        turns' own texts carry a MARK, for `tokens_of`. Raises ConfigError where the template refuses."""
        if self.system == "fold" and [m.get("role") for m in messages[:2]] == ["system", "user"]:
            system, first, *rest = messages
            content = f"{system['content']}\n\n{first.get('content') or ''}"
            messages = [{**first, "content": content}, *rest]
        turns = [self._as_text(turn) for turn in messages]
        named = {**self.options, **self.known(options), "tools": tools, "add_generation_prompt": opened}
        try:
            if self._chat_template is not None:
                return self._chat_template(turns, **named)
            if self.date:  # in place of today's
                text = self._tokenizer.get_chat_template(None, tools)
                named["chat_template"] = NOW.sub(lambda call: repr(self.date.strftime(call[2])), text)
            return self._tokenizer.apply_chat_template(turns, tokenize=False, **named)
        except Exception as error:  # templates raise whatever their author chose
            roles = ", ".join(str(message.get("role")) for message in messages)
            way = "; `--set model.system=fold` puts it into the first user turn" if "system" in roles else ""
            told = f"The model's chat template refuses the turns {roles} ({error}){way}."
            raise ConfigError(told) from None

    def known(self, options: Options) -> Options:
        """The options. Raises ConfigError for one that the chat template does not know, and would not honour."""
        if options and not self.has_chat_template:
            raise ConfigError("The model has no chat template, so model.template has nothing to set.")
        known = self._template_options if options and self._chat_template is None else set(options) - RESERVED
        if unknown := min(set(options) - known, default=None):
            told = f"has no option {unknown}; leave it out of model.template."
            raise ConfigError(f"The model's chat template {told}")
        return options

    @cached_property
    def _template_options(self) -> set[str]:
        """The variables that the chat template reads and does not set itself, but for those that it is told anyway."""
        written = self._tokenizer.chat_template
        found = set()
        for text in written.values() if isinstance(written, dict) else [written]:
            try:
                tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(GENERATION.sub("", text))
                found |= meta.find_undeclared_variables(tree)
            except TemplateSyntaxError:  # a block of some other library's: its words are all there is
                found |= set(re.findall(r"\w+", text))
        return found - RESERVED - set(self._tokenizer.special_tokens_map) - set(Environment().globals)

    def tokens_of(self, text: str) -> list[int]:
        """Tokens of rendered text, marked control tokens as text. Raises ConfigError where that cannot be spelt."""
        tokens = [token for part in text.split(MARK) for token in self._encode(part)]
        if MARK in text and self.decode(tokens) != text.replace(MARK, ""):
            found = next(name for name in self.control_tokens if name[0] + MARK + name[1:] in text)
            raise ConfigError(f"The text holds the control token {found}, which cannot be read as text here.")
        return tokens

    def checked(self, tokens: list[int]) -> list[int]:
        """The tokens. Raises DataError for an id beyond the model's embedding, with the token's text."""
        if self.vocabulary and max(tokens, default=0) >= self.vocabulary:
            beyond = next(token for token in tokens if token >= self.vocabulary)
            told = f"has the id {beyond}, but the model's embedding has {self.vocabulary} rows; leave it out"
            name = self.convert_ids_to_tokens(beyond)
            raise DataError(f"the token {name!r} {told}, or use the model's own tokenizer.")
        return tokens

    @cached_property
    def control_tokens(self) -> list[str]:
        """The special tokens that text must not become, the longest first."""
        added = getattr(self._tokenizer, "added_tokens_decoder", {}).values()
        own = {t.content for t in added if t.special and len(t.content) > 1}
        return sorted(own.difference(THINKING), key=len, reverse=True)

    def _encode(self, text: str) -> list[int]:
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=False))
        except (TypeError, UnicodeEncodeError):  # the tokenizer's word for half a surrogate pair
            raise ConfigError(f"{text!a:.60} holds half a pair, which stands for no character.") from None

    def _as_text(self, value: Any, key: str = "") -> Any:
        """A copy of a turn in which every control token is marked as text."""
        if isinstance(value, str):
            return value if key in ("role", "type") else self.marked(value)
        if isinstance(value, dict):
            return {name: self._as_text(part, name) for name, part in value.items()}
        return [self._as_text(part, key) for part in value] if isinstance(value, list) else value

    def marked(self, text: str) -> str:
        """The text with a MARK inside every control token."""
        for name in self.control_tokens:
            if name in text:
                self.checked([self.convert_tokens_to_ids(name)])
                text = text.replace(name, name[0] + MARK + name[1:])
        return text

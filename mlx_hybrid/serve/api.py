"""OpenAI's request and response bodies: what is understood is honoured, the rest is refused by name.

https://platform.openai.com/docs/api-reference/chat and /completions.
"""

import time
import uuid
from dataclasses import dataclass
from typing import Any

from mlx_hybrid.errors import ConfigError, nearest
from mlx_hybrid.models.generate import Sampling

MOST_STOPS = 4
COMMON = {"model", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options"}
CHAT = COMMON | {"messages", "max_completion_tokens", "chat_template_kwargs"}
TEXT = COMMON | {"prompt"}
NEUTRAL: dict[str, tuple] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
}
"""Values that ask for nothing; any other is refused."""
LABELS = {"user", "metadata", "safety_identifier", "prompt_cache_key"}
"""Keys that are for the operator's books and change no answer."""
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class ApiError(Exception):
    """An answer that is an error, with the status it is sent under."""

    def __init__(
        self, status: int, message: str, code: str = "invalid_value", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def body(self) -> dict:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Asked:
    """A request, checked. `content` is a list of messages, or text to continue."""

    model: str
    content: list[dict] | str
    sampling: Sampling
    exact: bool
    """The client named the number of tokens, so fewer would not do."""
    stop: tuple[str, ...]
    stream: bool
    usage: bool
    template: dict[str, Any]
    """Options of the chat template, such as `enable_thinking`."""


def parse(body: Any, *, chat: bool, models: list[str], defaults: Sampling) -> Asked:
    """A request body as what to do. Raises ApiError for what cannot be done, naming the parameter."""
    if not isinstance(body, dict):
        raise ApiError(400, "The body must be a JSON object.")
    body = {key: value for key, value in body.items() if value is not None}
    refuse_unknown(body, CHAT if chat else TEXT)
    options = body.get("stream_options", {})
    if not isinstance(options, dict) or not set(options) <= {"include_usage", "include_obfuscation"}:
        raise ApiError(400, "stream_options takes include_usage.", param="stream_options")
    sampling, exact = parse_sampling(body, defaults)
    return Asked(
        parse_model(body, models),
        parse_messages(body) if chat else parse_prompt(body),
        sampling,
        exact,
        parse_stop(body.get("stop", [])),
        flag(body, "stream"),
        bool(options.get("include_usage")),
        parse_template(body.get("chat_template_kwargs", {})),
    )


def refuse_unknown(body: dict, known: set[str]) -> None:
    for key, value in body.items():
        if key in known or key in LABELS or any(same(value, neutral) for neutral in NEUTRAL.get(key, ())):
            continue
        if key in NEUTRAL:
            raise ApiError(400, f"{key} is not supported here; leave it out.", "unsupported_parameter", key)
        raise ApiError(400, f'No parameter "{key}"; {nearest(key, known)}', "unknown_parameter", key)


def same(value: Any, other: Any) -> bool:
    """Whether two JSON values are one: Python takes 0 for false and 1 for true."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def parse_template(options: Any) -> dict[str, Any]:
    if not isinstance(options, dict):
        raise ApiError(400, "chat_template_kwargs must be an object.", "invalid_type", "chat_template_kwargs")
    return options


def parse_model(body: dict, models: list[str]) -> str:
    name = body.get("model")
    if name is None:
        raise ApiError(400, f"model is missing; this server has {', '.join(models)}.", "missing", "model")
    if name not in models:
        raise ApiError(
            404, f"No model {name!r} here; {nearest(str(name), models)}", "model_not_found", "model"
        )
    return name


def parse_sampling(body: dict, defaults: Sampling) -> tuple[Sampling, bool]:
    values = {key: number(body, key) for key in ("temperature", "top_p") if key in body}
    limits = [key for key in ("max_tokens", "max_completion_tokens") if key in body]
    if len(limits) == 2 and body[limits[0]] != body[limits[1]]:
        raise ApiError(400, "max_tokens and max_completion_tokens differ; give one.", param="max_tokens")
    values |= {"max_tokens": number(body, limits[0], int)} if limits else {}
    values |= {"seed": number(body, "seed", int)} if "seed" in body else {}
    try:
        return Sampling(
            **({"max_tokens": defaults.max_tokens, "temperature": defaults.temperature} | values)
        ), bool(limits)
    except ConfigError as error:
        raise ApiError(400, str(error), param=str(error).split()[0]) from None


def number(body: dict, key: str, kind: type = float) -> Any:
    value = body[key]
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        raise ApiError(400, f"{key} must be a number.", "invalid_type", key)
    try:
        return kind(value)
    except OverflowError:
        raise ApiError(400, f"{key} is too large.", param=key) from None


def flag(body: dict, key: str) -> bool:
    value = body.get(key, False)
    if not isinstance(value, bool):
        raise ApiError(400, f"{key} must be true or false.", "invalid_type", key)
    return value


def parse_stop(stop: Any) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop
    if (
        not isinstance(stops, list)
        or len(stops) > MOST_STOPS
        or not all(isinstance(s, str) and s for s in stops)
    ):
        raise ApiError(400, f"stop must be a string or up to {MOST_STOPS} of them, none empty.", param="stop")
    return tuple(stops)


def parse_prompt(body: dict) -> str:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise ApiError(400, "prompt must be one string.", "invalid_type", "prompt")
    return real_text(prompt, "prompt")


def parse_messages(body: dict) -> list[dict]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages must be a list with at least one message.", param="messages")
    return [parse_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def parse_message(message: Any, where: str) -> dict:
    if not isinstance(message, dict):
        raise ApiError(400, f"{where} must be an object.", "invalid_type", where)
    role = message.get("role")
    if role not in ROLES:
        raise ApiError(400, f"{where}.role: {role!r} is none of {', '.join(ROLES)}.", param=f"{where}.role")
    extra = [key for key, value in message.items() if value and key not in ("role", "content")]
    if extra:
        raise ApiError(
            400, f"{where}.{extra[0]} is not supported.", "unsupported_parameter", f"{where}.{extra[0]}"
        )
    return {"role": ROLES[role], "content": parse_content(message.get("content"), f"{where}.content")}


def parse_content(content: Any, where: str) -> str:
    """Text, or the texts of a list of parts."""
    if isinstance(content, str):
        return real_text(content, where)
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    ):
        return real_text("".join(part["text"] for part in content), where)
    raise ApiError(
        400, f"{where} must be text; images, audio and files are not understood.", "invalid_type", where
    )


def real_text(text: str, where: str) -> str:
    """The text, unless it holds half of a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ApiError(400, f"{where} is not valid Unicode.", "invalid_type", where) from None
    return text


@dataclass
class Reply:
    """The frame that every body about one answer carries."""

    model: str
    chat: bool

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + uuid.uuid4().hex
        self.created = int(time.time())

    def frame(self, kind: str, choices: list[dict], **more: Any) -> dict:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **more,
        }

    def whole(self, text: str, finish: str, usage: dict) -> dict:
        """The answer in one body."""
        inner = (
            {"message": {"role": "assistant", "content": text, "refusal": None}}
            if self.chat
            else {"text": text}
        )
        choice = {"index": 0, **inner, "logprobs": None, "finish_reason": finish}
        return self.frame("chat.completion" if self.chat else "text_completion", [choice], usage=usage)

    def chunk(self, text: str | None, finish: str | None = None, *, first: bool = False) -> dict:
        """One event of a stream."""
        if self.chat:
            delta = ({"role": "assistant"} if first else {}) | ({"content": text} if text is not None else {})
            inner: dict = {"delta": delta}
        else:
            inner = {"text": text or ""}
        choice = {"index": 0, **inner, "logprobs": None, "finish_reason": finish}
        return self.frame("chat.completion.chunk" if self.chat else "text_completion", [choice])

    def usage_chunk(self, usage: dict) -> dict:
        return self.frame("chat.completion.chunk" if self.chat else "text_completion", [], usage=usage)


def usage(prompt_tokens: int, answer_tokens: int) -> dict:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": answer_tokens,
        "total_tokens": prompt_tokens + answer_tokens,
    }


class StopText:
    """Ends a stream before the first stop string; text that could be the beginning of one is held back."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.stops, self.held, self.found = stops, "", False

    def __call__(self, piece: str) -> str:
        """What can be sent now."""
        if self.found:
            return ""
        text = self.held + piece
        places = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if places:
            self.found, self.held = True, ""
            return text[: min(places)]
        keep = max(
            (k for stop in self.stops for k in range(1, len(stop)) if text.endswith(stop[:k])), default=0
        )
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """What was held back when the answer ended otherwise."""
        return "" if self.found else self.held

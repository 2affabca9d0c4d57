"""OpenAI's request and response bodies: what is understood is honoured, the rest is refused by name.

https://platform.openai.com/docs/api-reference/chat and /completions.
"""

import time
import uuid
from dataclasses import dataclass, fields
from typing import Any

from mlx_hybrid.errors import ConfigError, nearest
from mlx_hybrid.models.generate import Sampling

SAMPLING = {"max_completion_tokens", *(field.name for field in fields(Sampling))}
MOST_STOPS = 4
COMMON = {*SAMPLING, "model", "stop", "stream", "stream_options"}
CHAT = COMMON | {"messages", "chat_template_kwargs"}
TEXT = COMMON - {"max_completion_tokens"} | {"prompt"}
IDLE = {"n": (1,), "best_of": (1,), "tool_choice": ("none", "auto"), "parallel_tool_calls": (True, False)}
IDLE |= {
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
}
IDLE |= dict.fromkeys(("echo", "logprobs", "store"), (False,))
IDLE |= dict.fromkeys(("frequency_penalty", "presence_penalty", "top_logprobs"), (0,))
IDLE |= dict.fromkeys(("suffix", "logit_bias", "tools", "functions"), ("", [], {}))
"""Values that ask for nothing; any other is refused."""
LABELS = {"user", "metadata", "safety_identifier", "prompt_cache_key"}
"""Keys that are for the operator's books and change no answer."""
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class ApiError(Exception):
    """An answer that is an error, with the status it is sent under."""

    def __init__(self, status: int, told: str, code: str = "invalid_value", param: str | None = None) -> None:
        super().__init__(told)
        self.status, self.code, self.param = status, code, param

    def body(self) -> dict:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Asked:
    """A request, checked: `content` is a list of messages or text to continue, `template` the options of the chat
    template; where it is `exact` about the number of tokens, fewer would not do."""

    model: str
    content: list[dict] | str
    sampling: Sampling
    exact: bool
    stop: tuple[str, ...]
    stream: bool
    usage: bool
    template: dict[str, Any]


def refusal(param: str, message: str, code: str = "invalid_type") -> ApiError:
    """A request that is wrong in `param`, which `message` goes on about."""
    return ApiError(400, f"{param}{message}", code, param)


def parse(body: Any, *, chat: bool, models: list[str], defaults: Sampling) -> Asked:
    """A request body as what to do. Raises ApiError for what cannot be done, naming the parameter."""
    if not isinstance(body, dict):
        raise ApiError(400, "The body must be a JSON object.")
    body = {key: value for key, value in body.items() if value is not None}
    refuse_unknown(body, CHAT if chat else TEXT)
    options, template = body.get("stream_options", {}), body.get("chat_template_kwargs", {})
    if not isinstance(options, dict) or not set(options) <= {"include_usage", "include_obfuscation"}:
        raise refusal("stream_options", " takes include_usage.", "invalid_value")
    if not isinstance(template, dict):
        raise refusal("chat_template_kwargs", " must be an object.")
    if not isinstance(stream := body.get("stream", False), bool):
        raise refusal("stream", " must be true or false.")
    sampling, exact = parse_sampling(body, defaults)
    return Asked(
        model=parse_model(body.get("model"), models),
        content=parse_content(body, chat),
        sampling=sampling,
        exact=exact,
        stop=parse_stop(body.get("stop", [])),
        stream=stream,
        usage=bool(options.get("include_usage")),
        template=template,
    )


def refuse_unknown(body: dict, known: set[str]) -> None:
    for key, value in body.items():
        if key in known or key in LABELS or any(same(value, idle) for idle in IDLE.get(key, ())):
            continue
        if key in IDLE:
            raise refusal(key, " is not supported here; leave it out.", "unsupported_parameter")
        raise ApiError(400, f'No parameter "{key}"; {nearest(key, known)}', "unknown_parameter", key)


def same(value: Any, other: Any) -> bool:
    """Whether two JSON values are one: Python takes 0 for false and 1 for true."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def parse_model(name: Any, models: list[str]) -> str:
    if name is None:
        raise refusal("model", f" is missing; this server has {', '.join(models)}.", "missing")
    if name not in models:
        told = f"No model {name!r} here; {nearest(str(name), models)}"
        raise ApiError(404, told, "model_not_found", "model")
    return name


def parse_sampling(body: dict, defaults: Sampling) -> tuple[Sampling, bool]:
    """How to sample, and whether the request names a number of tokens."""
    values = {key: body[key] for key in SAMPLING if key in body}
    limit = values.pop("max_completion_tokens", values.get("max_tokens"))
    if limit != values.get("max_tokens", limit):
        raise refusal("max_tokens", " and max_completion_tokens differ; give one.", "invalid_value")
    values |= {} if limit is None else {"max_tokens": limit}
    try:
        return defaults.with_values(values, "The request"), limit is not None
    except ConfigError as error:
        raise ApiError(400, str(error), param=next(key for key in values if key in str(error))) from None


def parse_stop(stop: Any) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop
    whole = isinstance(stops, list) and all(isinstance(stop, str) and stop for stop in stops)
    if not whole or len(stops) > MOST_STOPS:
        told = f" must be a string or up to {MOST_STOPS} of them, none empty."
        raise refusal("stop", told, "invalid_value")
    return tuple(stops)


def parse_content(body: dict, chat: bool) -> list[dict] | str:
    """The messages of a conversation, or the text to continue."""
    if not chat:
        prompt = body.get("prompt")
        only = prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt
        return real_text(only, "prompt", "one string")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise refusal("messages", " must be a list with at least one message.", "invalid_value")
    return [parse_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def parse_message(message: Any, where: str) -> dict:
    if not isinstance(message, dict):
        raise refusal(where, " must be an object.")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise refusal(f"{where}.role", f": {role!r} is none of {', '.join(ROLES)}.", "invalid_value")
    for key, value in message.items():
        if value and key not in ("role", "content"):
            raise refusal(f"{where}.{key}", " is not supported.", "unsupported_parameter")
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        texts = [part.get("text") for part in content]
        content = "".join(texts) if all(isinstance(text, str) for text in texts) else None
    kind = "text; images, audio and files are not understood"
    return {"role": ROLES[role], "content": real_text(content, f"{where}.content", kind)}


def real_text(text: Any, where: str, kind: str) -> str:
    """The text, unless it is none, or holds half of a surrogate pair, which is no character."""
    if not isinstance(text, str):
        raise refusal(where, f" must be {kind}.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise refusal(where, " is not valid Unicode.") from None
    return text


class Reply:
    """The frame that every body about one answer carries."""

    def __init__(self, model: str, *, chat: bool, streamed: bool) -> None:
        self.chat, kind = chat, "chat.completion.chunk" if streamed else "chat.completion"
        self.frame = {
            "id": ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex,
            "object": kind if chat else "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def body(self, text: str, inner: dict, finish: str | None, **more: Any) -> dict:
        choice = {"index": 0, **(inner if self.chat else {"text": text})}
        return {**self.frame, "choices": [{**choice, "logprobs": None, "finish_reason": finish}], **more}

    def whole(self, text: str, finish: str, usage: dict) -> dict:
        """The answer in one body."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return self.body(text, {"message": message}, finish, usage=usage)

    def chunk(self, text: str, finish: str | None = None, *, first: bool = False) -> dict:
        """One event of a stream; the last has no text."""
        delta = ({"role": "assistant"} if first else {}) | ({"content": text} if finish is None else {})
        return self.body(text, {"delta": delta}, finish)


def usage(prompt: int, answer: int) -> dict:
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


class StopText:
    """Ends a stream before the first stop string; text that could be the beginning of one is held back."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.stops, self.held, self.found = stops, "", False

    def __call__(self, piece: str) -> str:
        """What can be sent now."""
        if self.found:
            return ""
        text, self.held = self.held + piece, ""
        if places := [at for stop in self.stops if (at := text.find(stop)) >= 0]:
            self.found = True
            return text[: min(places)]
        begun = [k for stop in self.stops for k in range(1, len(stop)) if text.endswith(stop[:k])]
        sent = len(text) - max(begun, default=0)
        self.held = text[sent:]
        return text[:sent]

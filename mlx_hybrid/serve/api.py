"""OpenAI's bodies (platform.openai.com/docs/api-reference/chat and /completions): what is not known is refused."""

import re
import time
import uuid
from collections.abc import Collection
from dataclasses import fields
from typing import Any

from mlx_hybrid.errors import ConfigError, nearest
from mlx_hybrid.models.sampling import Sampling

SAMPLING = {"max_completion_tokens", *(field.name for field in fields(Sampling))}
COMMON = {*SAMPLING, "model", "stop", "stream", "stream_options"}
CHAT = COMMON | {"messages", "chat_template_kwargs"}
TEXT = COMMON - {"max_completion_tokens"} | {"prompt"}
IDLE = {"n": (1,), "best_of": (1,), "tool_choice": ("none", "auto"), "parallel_tool_calls": (True, False)}
IDLE |= {"response_format": ({"type": "text"},), "service_tier": ("auto", "default")}
IDLE |= {"modalities": (["text"],)} | dict.fromkeys(("echo", "logprobs", "store"), (False,))
IDLE |= dict.fromkeys(("frequency_penalty", "presence_penalty", "top_logprobs"), (0,))
IDLE |= dict.fromkeys(("suffix", "logit_bias", "tools", "functions"), ("", [], {}))
"""Values that ask for nothing; any other is refused."""
LABELS = {"user", "metadata", "safety_identifier", "prompt_cache_key"}  # for the operator's books alone
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class ApiError(Exception):
    """An answer that is an error; `param` is what was wrong in the request."""

    def __init__(self, told: str, code: str = "invalid_value", param: Any = None, status: int = 400) -> None:
        super().__init__(told)
        self.status, self.code, self.param = status, code, param

    def body(self) -> dict:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def need(holds: Any, what: str, told: str, code: str = "invalid_value", status: int = 400) -> None:
    """Raise ApiError about a parameter or something else unless something holds."""
    if not holds:
        raise ApiError(f"{what} {told}", code, what if status == 400 else None, status)


def checked(body: Any, *, chat: bool) -> dict:
    """A request's keys, and what others are by default. Raises ApiError for one that is unknown, or cannot be had."""
    need(isinstance(body, dict), "body", "must be a JSON object.")
    body, known = {key: value for key, value in body.items() if value is not None}, CHAT if chat else TEXT
    for key, value in body.items():
        idle = [own for own in IDLE.get(key, ()) if isinstance(own, bool) == isinstance(value, bool)]
        if key in known or key in LABELS or value in idle:
            continue
        need(key not in IDLE, key, "is not supported here; leave it out.", "unsupported_parameter")
        raise ApiError(f'No parameter "{key}"; {nearest(key, known)}', "unknown_parameter", key)
    body = {"stop": [], "stream": False, "stream_options": {}, "chat_template_kwargs": {}} | body
    body["stop"] = stops = [body["stop"]] if isinstance(body["stop"], str) else body["stop"]
    whole = isinstance(stops, list) and all(isinstance(stop, str) and stop for stop in stops)
    need(whole and len(stops) <= 4, "stop", "must be a string or up to 4 of them, none empty.")
    need(isinstance(body["stream"], bool), "stream", "must be true or false.")
    need(isinstance(body["chat_template_kwargs"], dict), "chat_template_kwargs", "must be an object.")
    options = body["stream_options"]
    fits = isinstance(options, dict) and set(options) <= {"include_usage", "include_obfuscation"}
    need(fits, "stream_options", "takes include_usage.")
    return body


def parse_model(name: Any, models: Collection[str]) -> str:
    need(name is not None, "model", f"is missing; this server has {', '.join(models)}.", "missing")
    if name not in models:
        told = f"No model {name!r} here; {nearest(str(name), models)}"
        raise ApiError(told, "model_not_found", "model", 404)
    return name


def parse_sampling(body: dict, defaults: Sampling) -> tuple[Sampling, bool]:
    """How to sample, and whether the request names a number of tokens."""
    values = {key: body[key] for key in SAMPLING if key in body}
    limit = values.pop("max_completion_tokens", values.get("max_tokens"))
    same = limit == values.get("max_tokens", limit)
    need(same, "max_tokens", "and max_completion_tokens differ; give one.")
    values |= {} if limit is None else {"max_tokens": limit}
    try:
        return defaults.with_values(values, "The request"), limit is not None
    except ConfigError as error:
        raise ApiError(str(error), param=next(key for key in values if key in str(error))) from None


def parse_content(body: dict, chat: bool) -> list[dict] | str:
    if not chat:
        prompt = body.get("prompt")
        only = prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt
        return real_text(only, "prompt", "one string")
    messages = body.get("messages")
    need(isinstance(messages, list) and messages, "messages", "must be a list with at least one message.")
    return [parse_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def parse_message(message: Any, where: str) -> dict:
    need(isinstance(message, dict), where, "must be an object.")
    role, content = message.get("role"), message.get("content")
    need(str(role) in ROLES, f"{where}.role", f"is {role!r}, which is none of {', '.join(ROLES)}.")
    for key in message.keys() - {"role", "content"}:
        need(not message[key], f"{where}.{key}", "is not supported.", "unsupported_parameter")
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        texts = [part.get("text") for part in content]
        content = "".join(texts) if all(isinstance(text, str) for text in texts) else None
    kind = "text; images, audio and files are not understood"
    return {"role": ROLES[role], "content": real_text(content, f"{where}.content", kind)}


def real_text(text: Any, where: str, kind: str) -> str:
    """The text, unless it is none, or holds half of a surrogate pair, which is no character."""
    need(isinstance(text, str), where, f"must be {kind}.")
    need(not re.search("[\ud800-\udfff]", text), where, "is not valid Unicode.")
    return text


class Reply:
    """Bodies about one answer, in the frame that each carries."""

    def __init__(self, model: str, *, chat: bool, streamed: bool) -> None:
        self.chat, self.streamed = chat, streamed
        kind = "chat.completion" + ".chunk" * streamed if chat else "text_completion"
        name = ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex
        self.frame = {"id": name, "object": kind, "created": int(time.time()), "model": model}

    def body(self, text: str, finish: str | None = None, *, first: bool = False, **more: Any) -> dict:
        """The whole answer, or one event of a stream, whose last one has no text."""
        said = {"content": text} if not (self.streamed and finish) else {}
        if self.streamed:
            said = {"delta": {"role": "assistant"} | said if first else said}
        else:
            said = {"message": {"role": "assistant", "refusal": None} | said}
        choice = {"index": 0, "logprobs": None, "finish_reason": finish}
        return self.frame | {"choices": [choice | (said if self.chat else {"text": text})]} | more


def usage(prompt: int, answer: int) -> dict:
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


class StopText:
    """Ends a stream before the first stop string; text that could be the beginning of one is held back."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.stops, self.held, self.found = stops, "", False

    def __call__(self, piece: str) -> str:
        if self.found:
            return ""
        text, self.held = self.held + piece, ""
        if places := [at for stop in self.stops if (at := text.find(stop)) >= 0]:
            self.found = True
            return text[: min(places)]
        begun = [stop[:k] for stop in self.stops for k in range(1, len(stop)) if text.endswith(stop[:k])]
        self.held = max(begun, key=len, default="")
        return text.removesuffix(self.held)

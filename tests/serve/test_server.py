"""`serve` met by the real OpenAI client, and by clients that do not behave."""

import http.client
import json
import re
import socket
import threading
import time
from contextlib import contextmanager

import pytest
from openai import APIStatusError, AuthenticationError, BadRequestError, NotFoundError, OpenAI, RateLimitError
from tiny_model import TEMPLATE, write_base

from mlx_hybrid.models.adapted import open_pair
from mlx_hybrid.models.generate import Sampling, stream
from mlx_hybrid.serve.api import StopText
from mlx_hybrid.serve.app import Server
from mlx_hybrid.serve.engine import Engine
from mlx_hybrid.serve.guard import Policy

HELLO = [{"role": "user", "content": "hello"}]
ONE_TOKEN = {"model": "trial", "messages": HELLO, "max_tokens": 1}


@contextmanager
def serving(pair, *, waiting=16, active=4, **policy):
    engine = Engine(pair, waiting=waiting, active=active)
    log = []
    server = Server(engine, Policy(**policy), 0, log.append)
    server.lines = log
    threads = [threading.Thread(target=each, daemon=True) for each in (engine.run, server.run)]
    for thread in threads:
        thread.start()
    try:
        yield server
    finally:
        engine.close()
        server.close()
        for thread in threads:
            thread.join(10)


@pytest.fixture(scope="module")
def server(pair):
    with serving(pair) as one:
        yield one


@pytest.fixture(scope="module")
def client(server):
    with talking(server) as one:
        yield one


def talking(server, key="none"):
    return OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0)


def chat(client, model="trial", messages=HELLO, **how):
    return client.chat.completions.create(model=model, messages=messages, **how)


def local(model, pair, tokens, **settings):
    return "".join(p.text for p in stream(model, pair.tokenizer, tokens, Sampling(**settings)))


def request(server, method="POST", path="/v1/chat/completions", body=None, **headers):
    """Status, headers and JSON of a hand-made request."""
    connection = http.client.HTTPConnection(*server.address, timeout=30)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, data, {"Content-Type": "application/json", **headers})
    reply = connection.getresponse()
    text = reply.read()
    connection.close()
    return reply.status, reply.headers, text


def test_base_and_adapted_are_two_models(server, client, pair):
    assert [model.id for model in client.models.list()] == ["trial", "tiny"]
    assert client.models.retrieve("trial").adapted_modules == 14
    assert client.models.retrieve("tiny").adapted_modules == 0
    answers = {}
    for name, model in (("trial", pair.model), ("tiny", pair.base)):
        reply = chat(client, name, max_tokens=20)
        answers[name] = reply.choices[0].message.content
        assert answers[name] == local(model, pair, pair.tokenizer.ask(HELLO), max_tokens=20)
        assert reply.model == name
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert answers["trial"] != answers["tiny"]


def test_a_stream_says_the_same_piece_by_piece(client):
    whole = chat(client, max_tokens=20)
    events = list(chat(client, max_tokens=20, stream=True, stream_options={"include_usage": True}))
    texts = [event.choices[0].delta.content or "" for event in events[:-1]]
    assert "".join(texts) == whole.choices[0].message.content
    assert sum(bool(text) for text in texts) > 3
    assert events[0].choices[0].delta.role == "assistant"
    assert events[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert events[-1].usage == whole.usage
    assert len({event.id for event in events}) == 1


def test_completions_continue_raw_text(client, pair):
    reply = client.completions.create(model="tiny", prompt="abc", max_tokens=9)
    assert reply.choices[0].text == local(pair.base, pair, pair.tokenizer.continued("abc"), max_tokens=9)
    events = client.completions.create(model="tiny", prompt=["abc"], max_tokens=9, stream=True)
    assert "".join(event.choices[0].text for event in events) == reply.choices[0].text


def test_seeds_repeat_while_others_are_answered_and_conversations_go_on(client, pair):
    def ask(seed):
        return chat(client, max_tokens=20, temperature=1, seed=seed).choices[0].message.content

    alone, results = ask(1), {}
    threads = [threading.Thread(target=lambda s=s: results.update({s: ask(s)})) for s in (1, 2, 3, 4, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[1] == alone
    assert len(set(results.values())) > 2
    messages = [*HELLO, {"role": "assistant", "content": alone}, {"role": "user", "content": "more"}]
    expected = local(pair.model, pair, pair.tokenizer.ask(messages), max_tokens=9)
    assert chat(client, messages=messages, max_tokens=9).choices[0].message.content == expected


def test_stop_strings_end_the_answer_before_them(client):
    whole = client.completions.create(model="trial", prompt="abc", max_tokens=20).choices[0].text
    stop = whole[2:4]
    assert stop
    reply = client.completions.create(model="trial", prompt="abc", max_tokens=20, stop=[stop, "never"])
    assert reply.choices[0].text == whole[: whole.index(stop)]
    assert reply.choices[0].finish_reason == "stop"


def test_text_that_may_begin_a_stop_string_is_held_back():
    until = StopText(("END", "x"))
    assert [until(piece) for piece in ("aE", "N", "QE", "ND", "b")] == ["a", "", "ENQ", "", ""]
    assert until.found
    until = StopText(("END",))
    assert until("abEN") + until.held == "abEN"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"temperature": 9}, "temperature must be at most 5"),
        ({"temperature": "hot"}, "must be a number"),
        ({"temperature": 10**400}, "finite number"),
        ({"max_tokens": 0}, "at least 1"),
        ({"max_tokens": 500}, "context of 256 leaves"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "differ"),
        ({"n": 2}, "n is not supported"),
        ({"n": True}, "n is not supported"),
        ({"logprobs": 0}, "logprobs is not supported"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "has no option enable_thinking"),
        ({"chat_template_kwargs": {"tools": []}}, "has no option tools"),
        ({"chat_template_kwargs": [1]}, "must be an object"),
        ({"tools": [{"type": "function"}]}, "tools is not supported"),
        ({"temprature": 1}, 'did you mean "temperature"'),
        ({"adapters": "/etc"}, 'No parameter "adapters"'),
        ({"stop": [""]}, "none empty"),
        ({"stream": "yes"}, "true or false"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "'tool', which is none of"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not understood"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "not valid Unicode"),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, "The prompt has 304"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(server, change, said):
    status, _, text = request(server, body={"model": "trial", "messages": HELLO, **change})
    error = json.loads(text)["error"]
    assert (status, error["type"]) == (400, "invalid_request_error")
    assert said in error["message"]


def test_parameters_that_ask_for_nothing_pass(client):
    parts = [
        {"role": "developer", "content": "x"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    idle = {"n": 1, "presence_penalty": 0, "user": "me", "tools": [], "logit_bias": {}, "store": False}
    chat(client, messages=parts, max_completion_tokens=3, response_format={"type": "text"}, **idle)


def test_a_request_sets_options_of_the_chat_template(tmp_path):
    ends = "{% if add_generation_prompt %}{{ '<|assistant|>' }}"
    template = TEMPLATE.replace(ends, ends + "{% if brief is defined and brief %}##{% endif %}")
    pair = open_pair(str(write_base(tmp_path / "tiny", template=template)))
    with serving(pair) as server, talking(server) as client:
        asked = {"model": next(iter(server.engine.models)), "messages": HELLO, "max_tokens": 2}
        used = [
            client.chat.completions.create(**asked, extra_body={"chat_template_kwargs": options}).usage
            for options in ({}, {"brief": False}, {"brief": True})
        ]
    plain, off, on = (usage.prompt_tokens for usage in used)
    assert (off, on) == (plain, plain + 2)


@pytest.mark.parametrize("name", ["nothing", "/etc/passwd", "../tiny", "tria"])
def test_clients_name_models_by_id_alone(client, name):
    with pytest.raises(NotFoundError, match="here"):
        chat(client, name)


@pytest.mark.parametrize(
    ("asked", "codes"),
    [
        ({"body": b"{nope"}, {400}),
        ({"body": b"[" * 100_000}, {400}),
        ({"body": [1]}, {400}),
        ({"body": {"model": "trial"}, "Content_Type": "text/plain"}, {415}),
        ({"body": b"x" * (3 << 20)}, {413}),
        ({"body": b"", "Transfer_Encoding": "chunked", "Content_Length": ""}, {400, 411}),
        ({"body": {}, "path": "/v1/embeddings"}, {404}),
        ({"method": "GET"}, {404}),
        ({"body": ONE_TOKEN, "Host": "evil.example"}, {403}),
        ({"body": ONE_TOKEN, "Origin": "https://evil.example"}, {403}),
        ({"body": ONE_TOKEN, "Origin": "null"}, {403}),
        ({"method": "OPTIONS", "Origin": "https://evil.example"}, {403}),
    ],
)
def test_the_wrong_body_and_the_pages_of_other_sites_are_refused(server, asked, codes):
    assert request(server, **asked)[0] in codes
    assert request(server, "GET", "/health")[0] == 200


def test_its_own_page_may_call(server):
    status, headers, _ = request(server, body=ONE_TOKEN, Origin=f"http://127.0.0.1:{server.address[1]}")
    assert status == 200
    assert not [name for name in headers if name.lower().startswith("access-control")]
    status, headers, text = request(server, "GET", "/")
    assert status == 200
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    loaded = re.findall(rb"(?:src|href|url|import|fetch)[=( ]+[\"']([^\"']+)", text)
    assert all(address.startswith((b"data:", b"/v1/")) for address in loaded)


def test_markdown_lets_nothing_but_text_through(server):
    """HTML, images and scripts behind links stay text; the rest is as CommonMark and GitHub's tables have it."""
    text = "**b** <script>x</script> [l](javascript:x) ![i](http://x/y.png) [k](https://a.b)\n\n|a|b|\n|-|-|\n|1|2|"
    status, _, reply = request(server, path="/v1/markdown", body={"text": text})
    html = json.loads(reply)["html"]
    assert status == 200
    assert "<strong>b</strong> &lt;script&gt;" in html
    assert re.findall(r"<(\w+)[ >]", html) == [
        *("p", "strong", "a", "a", "table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td")
    ]
    assert "javascript" not in "".join(re.findall(r'href="([^"]*)"', html))
    assert request(server, path="/v1/markdown", body={"text": 7})[0] == 400


def test_a_named_origin_may_call_and_a_key_is_asked_for_and_never_logged(pair):
    key, origin = "secret-key-123", "https://app.example"
    with serving(pair, api_key=key, origins=(origin,)) as server:
        asked = {"Access_Control_Request_Headers": "authorization,content-type"}
        asked |= {"Access_Control_Request_Method": "POST", "Origin": origin}
        status, headers, _ = request(server, "OPTIONS", **asked)
        assert status == 200
        assert headers["Access-Control-Allow-Origin"] == origin
        assert headers["Access-Control-Allow-Headers"] == "authorization,content-type"
        assert request(server, "GET", "/health")[0] == 200
        assert request(server, "GET", "/v1/models")[0] == 401
        with talking(server, key + "x") as wrong, pytest.raises(AuthenticationError):
            wrong.models.list()
        with talking(server, key) as right:
            assert len(list(right.models.list())) == 2
            chat(right, "tiny", max_tokens=2)
        time.sleep(0.1)
        assert any("/v1/chat/completions' 200" in line for line in server.lines)
        assert key not in "\n".join([*server.lines, repr(server.policy)])
        assert "hello" not in "\n".join(server.lines)


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    folder = tmp_path_factory.mktemp("endless") / "endless"
    return open_pair(str(write_base(folder, context=1 << 14, endless=True)))


def test_overload_is_answered_429_and_passes(endless):
    with serving(endless, waiting=1, active=1) as server, talking(server) as client:

        def ask_long():
            return chat(client, "endless", max_tokens=10_000, stream=True)

        first = ask_long()
        next(iter(first))
        second = threading.Thread(target=lambda: ask_long().close(), daemon=True)
        second.start()
        wait_until(lambda: len(server.engine.waiting) == 1)
        with pytest.raises(RateLimitError, match="waiting already") as refused:
            chat(client, "endless", max_tokens=1)
        assert refused.value.response.headers["Retry-After"] == "1"
        first.close()
        second.join(20)
        wait_until(lambda: not server.engine.waiting and not server.engine.active)
        chat(client, "endless", max_tokens=1)


def test_a_client_that_leaves_frees_its_place(endless):
    with serving(endless, active=1) as server:
        body = json.dumps({"model": "endless", "messages": HELLO, "max_tokens": 10_000}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(server.address) as connection:
            connection.sendall(head.encode() + body)
            wait_until(lambda: server.engine.active)
        wait_until(lambda: not server.engine.active)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET /health HTTP/1.1\r\nHost: loc",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 9\r\n\r\n{",
    ],
    ids=["nothing", "half a head", "half a body"],
)
def test_a_client_that_falls_silent_is_let_go(pair, monkeypatch, said):
    monkeypatch.setattr("mlx_hybrid.serve.app.SILENCE_SECONDS", 0.3)
    with serving(pair) as server, socket.create_connection(server.address, timeout=10) as connection:
        connection.sendall(said)
        assert b"200" not in connection.recv(1000)


def test_a_model_that_fails_is_a_500_and_the_server_goes_on(pair):
    with serving(pair) as server, talking(server) as client:
        models = dict(server.engine.models)
        server.engine.models["trial"] = None
        with pytest.raises(APIStatusError) as failed:
            chat(client, max_tokens=2)
        assert failed.value.status_code == 500
        server.engine.models.update(models)
        chat(client, max_tokens=2)


def test_no_template_leaves_completions(tmp_path):
    bare = open_pair(str(write_base(tmp_path / "bare", template=None)))
    with serving(bare) as server, talking(server) as client:
        with pytest.raises(BadRequestError, match="no chat template"):
            chat(client, "bare")
        assert client.completions.create(model="bare", prompt="a", max_tokens=2).usage.completion_tokens <= 2


def wait_until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)

"""The server as the `openai` client sees it: its answers are those of `generate_texts`, whatever
else goes on, and what is wrong is an error of the API's form.
"""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import torch

from hfscale.data.tokenizer import load_pretrained_tokenizer
from hfscale.data.tokens import encode_prompts
from hfscale.generation.prompts import write_turns
from hfscale.generation.texts import generate_texts
from hfscale.models import load_model
from hfscale.process import InputError
from hfscale.serving.answers import token_text
from hfscale.serving.app import Limits
from hfscale.serving.server import bind
from tests.serving.running import CONTEXT, Gate, post, running, save_models, until

TURNS = [{"role": "user", "content": "say a word"}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def served(folders):
    with running(folders.values()) as server_and_url:
        yield server_and_url


@pytest.fixture(scope="module")
def client(served):
    _, url = served
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def expected(folder: str, prompt: str, **settings) -> str:
    """What `hfscale generate` writes."""
    model = load_model(folder)
    tokenizer = load_pretrained_tokenizer(folder)
    [[text]] = generate_texts(model, tokenizer, [prompt], do_sample=False, **settings)
    return text


def streamed_text(chunks) -> str:
    return "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)


# ---- answers


@pytest.mark.parametrize("name", ["plain", "adapter"])
def test_a_completion_is_what_generate_writes(client, folders, name):
    text = expected(folders[name], "a word", max_new_tokens=20)
    answer = client.completions.create(
        model=folders[name], prompt="a word", max_tokens=20, temperature=0
    )
    assert answer.choices[0].text == text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 20
    chunks = client.completions.create(
        model=folders[name], prompt="a word", max_tokens=20, temperature=0, stream=True
    )
    assert streamed_text(chunks) == text


def test_a_chat_is_written_in_the_models_template(client, folders):
    tokenizer = load_pretrained_tokenizer(folders["chat"])
    prompt = write_turns(TURNS, tokenizer)
    text = expected(folders["chat"], prompt, max_new_tokens=12, add_special_tokens=False)
    asked = {"model": folders["chat"], "messages": TURNS, "temperature": 0, "max_tokens": 12}
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].message.content == text
    prompt_tokens = encode_prompts([prompt], tokenizer, add_special_tokens=False)[0]
    assert answer.usage.prompt_tokens == len(prompt_tokens)

    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(parts) == text
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage == answer.usage


def test_a_task_model_is_asked_in_its_template(client, folders):
    name = folders["task"]
    text = expected(name, "Say: Friday\n", max_new_tokens=7, stop_strings=["\n"])
    for prompt in ("Friday", "Say: Friday\n"):
        assert client.completions.create(model=name, prompt=prompt).choices[0].text == text
    chat = client.chat.completions.create(
        model=name, messages=[{"role": "user", "content": "Friday"}]
    )
    assert chat.choices[0].message.content == text
    raw = client.completions.create(
        model=name, prompt="Friday", extra_body={"raw_prompt": True}, temperature=0
    )
    assert raw.usage.prompt_tokens < chat.usage.prompt_tokens


def test_16_streams_at_once_are_each_what_they_are_alone(client, folders):
    prompts = [f"word number {'on ' * i}" for i in range(16)]
    texts = [expected(folders["plain"], prompt, max_new_tokens=30) for prompt in prompts]
    assert len(set(texts)) > 8

    def ask(prompt):
        chunks = client.completions.create(
            model=folders["plain"], prompt=prompt, max_tokens=30, temperature=0, stream=True
        )
        return streamed_text(chunks)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, prompts * 2)) == texts * 2


def test_equal_seeds_draw_equal_texts(client, folders):
    def ask(seed, **more):
        answer = client.completions.create(
            model=folders["plain"], prompt="a", max_tokens=20, seed=seed, **more
        )
        return [choice.text for choice in answer.choices]

    assert ask(1) == ask(1) != ask(2)
    assert ask(1, n=3)[:2] == ask(1) + ask(2)
    assert ask(None) != ask(None)


def test_a_stop_string_ends_a_text_and_is_left_out(client, folders):
    text = expected(folders["plain"], "a word", max_new_tokens=40)
    stop = text[9:12]
    asked = {"model": folders["plain"], "prompt": "a word", "max_tokens": 40, "temperature": 0}
    for given in (stop, ["never there", stop]):
        choice = client.completions.create(**asked, stop=given).choices[0]
        assert (choice.text, choice.finish_reason) == (text[: text.index(stop)], "stop")
        chunks = list(client.completions.create(**asked, stop=given, stream=True))
        assert streamed_text(chunks) == text[: text.index(stop)]
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_logprobs_are_the_models(client, folders):
    model = load_model(folders["chat"])
    tokenizer = load_pretrained_tokenizer(folders["chat"])
    [ids] = encode_prompts([write_turns(TURNS, tokenizer)], tokenizer, add_special_tokens=False)
    asked = {"model": folders["chat"], "messages": TURNS, "temperature": 0, "max_tokens": 4}
    choice = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3).choices[0]
    for item in choice.logprobs.content:
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        values, likeliest = logprobs.topk(3)
        assert item.logprob == pytest.approx(values[0].item(), abs=1e-4)
        shown = [(one.token, pytest.approx(one.logprob, abs=1e-4)) for one in item.top_logprobs]
        assert shown == [
            (token_text(token, tokenizer)[0], value)
            for token, value in zip(likeliest.tolist(), values.tolist(), strict=True)
        ]
        ids = [*ids, likeliest[0].item()]
    assert len(choice.logprobs.content) == 4
    legacy = client.completions.create(
        model=folders["plain"], prompt="a", max_tokens=3, logprobs=2, temperature=0
    )
    assert legacy.choices[0].logprobs.token_logprobs == pytest.approx(
        [max(top.values()) for top in legacy.choices[0].logprobs.top_logprobs]
    )
    assert client.chat.completions.create(**asked).choices[0].logprobs is None


def test_a_part_of_a_character_is_named_by_its_bytes(folders):
    tokenizer = load_pretrained_tokenizer(folders["plain"])
    duck = tokenizer("🦆")["input_ids"]
    names, contents = zip(*(token_text(token, tokenizer) for token in duck), strict=True)
    assert b"".join(contents) == "🦆".encode()
    assert names[0] == "bytes:\\xf0"
    assert token_text(tokenizer("w")["input_ids"][0], tokenizer) == ("w", b"w")


def test_prompts_as_texts_ids_and_several(client, folders):
    tokenizer = load_pretrained_tokenizer(folders["plain"])
    ids = encode_prompts(["a word", "number"], tokenizer)
    asked = {"model": folders["plain"], "max_tokens": 5, "temperature": 0}

    def texts(prompt):
        answer = client.completions.create(**asked, prompt=prompt)
        return [choice.text for choice in answer.choices], answer.usage.prompt_tokens

    several = texts(["a word", "number"])
    assert several == texts(ids)
    assert several[1] == sum(map(len, ids))
    assert texts("a word")[0] == texts(ids[0])[0] == several[0][:1]


def test_the_context_ends_a_text(client, folders):
    answer = client.completions.create(model=folders["plain"], prompt="a", max_tokens=10_000)
    assert answer.usage.total_tokens <= CONTEXT
    if answer.choices[0].finish_reason == "length":
        assert answer.usage.total_tokens == CONTEXT


def test_models_health_and_tokens(client, served, folders):
    _, url = served
    models = list(client.models.list())
    assert [model.id for model in models] == list(folders.values())
    assert {model.id: model.can_chat for model in models} == {
        folders["plain"]: False,
        folders["adapter"]: False,
        folders["chat"]: True,
        folders["task"]: True,
    }
    assert client.models.retrieve(folders["chat"]).max_model_len == CONTEXT
    assert httpx.get(f"{url}/health").json()["status"] == "ok"
    seen = post(url, "/tokenize", {"model": folders["chat"], "messages": TURNS}).json()
    tokenizer = load_pretrained_tokenizer(folders["chat"])
    assert seen["prompt"] == write_turns(TURNS, tokenizer) == "".join(seen["token_strs"])
    assert seen["count"] == len(seen["tokens"])


# ---- what is wrong


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("completions", b"{nope", 400, "the body is not JSON"),
        ("completions", b"[1]", 400, "not a JSON object"),
        ("completions", b'{"model": "x", "prompt": "\xff"}', 400, "not UTF-8"),
        ("completions", b'{"model": "plain", "temperature": NaN}', 400, "NaN is no number"),
        ("completions", b"[" * 100_000, 400, "the body"),
        ("completions", {"prompt": "a"}, 400, "model: missing"),
        ("completions", {"model": "nothing/here", "prompt": "a"}, 404, "not served here"),
        ("completions", {"model": "plain"}, 400, "prompt: missing"),
        ("completions", {"model": "plain", "prompt": 5}, 400, "prompt: got 5, expected text"),
        ("completions", {"model": "plain", "prompt": [[1], "a"]}, 400, "expected text, token ids"),
        ("completions", {"model": "plain", "prompt": [99999]}, 400, "outside the model's voc"),
        ("completions", {"model": "plain", "prompt": "\ud800"}, 400, "half of a surrogate pair"),
        ("completions", {"model": "plain", "prompt": "a " * 500}, 400, "leaves no room in the"),
        ("completions", {"model": "plain", "prompt": "a" * 10**6}, 400, "leaves no room in the"),
        ("completions", {"model": "plain", "prompt": "a" * 2 * 10**6}, 413, "larger than 2000000"),
        ("completions", {"model": "plain", "prompt": "a", "max_token": 3}, 400, "mean max_tokens?"),
        ("completions", {"model": "plain", "prompt": "a", "max_tokens": 0}, 400, "at least 1"),
        ("completions", {"model": "plain", "prompt": "a", "max_tokens": "9"}, 400, "max_tokens: g"),
        (
            "completions",
            {"model": "plain", "prompt": "a", "temperature": -1},
            400,
            "temperature: g",
        ),
        ("completions", {"model": "plain", "prompt": "a", "stop": ""}, 400, "1 to 1000 characters"),
        ("completions", {"model": "plain", "prompt": "a", "stop": 3}, 400, "stop: got 3"),
        ("completions", {"model": "plain", "prompt": "a", "echo": True}, 400, "echo: is not supp"),
        ("completions", {"model": "plain", "prompt": "a", "n": 500}, 400, "n: got 500"),
        ("completions", {"model": "plain", "prompt": ["a"] * 99, "n": 2}, 400, "at most 128 texts"),
        ("completions", {"model": "plain", "prompt": "a", "logit_bias": {"x": 1}}, 400, "logit_bi"),
        ("completions", {"model": "plain", "prompt": "a", "logit_bias": {"9999": 1}}, 400, "up to"),
        ("chat/completions", {"model": "plain", "messages": TURNS}, 400, "--chat_template chatml"),
        ("chat/completions", {"model": "chat"}, 400, "messages: missing"),
        ("chat/completions", {"model": "chat", "messages": []}, 400, "messages: empty"),
        ("chat/completions", {"model": "chat", "messages": ["hi"]}, 400, "messages: got"),
        ("chat/completions", {"model": "chat", "messages": [{"role": "user"}]}, 400, "messages[0]"),
        ("chat/completions", {"model": "chat", "messages": TURNS, "tools": [{}]}, 400, "tools: is"),
        (
            "chat/completions",
            {"model": "chat", "messages": TURNS, "top_logprobs": 2},
            400,
            "needs logprobs true",
        ),
        (
            "chat/completions",
            {"model": "chat", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "these models read text alone",
        ),
        ("elsewhere", {}, 404, "Not Found"),
    ],
)
def test_bad_requests(served, folders, path, body, status, said):
    _, url = served
    if isinstance(body, dict):
        named = {"model": folders.get(body["model"], body["model"])} if "model" in body else {}
        body = json.dumps(body | named).encode()
    response = post(url, f"/v1/{path}", body)
    error = response.json()["error"]
    assert (response.status_code, said in error["message"]) == (status, True), error
    assert "\n" not in error["message"] and len(error["message"]) < 500
    assert error.keys() == {"message", "type", "param", "code"}
    assert httpx.get(f"{url}/health").json() == {"status": "ok", "running": 0, "waiting": 0}


def test_control_characters_are_text(client, folders):
    text = "a\x00b\x1b[31m\x07\u202e\u2028\n\t\x7f"
    answer = client.completions.create(model=folders["plain"], prompt=text, max_tokens=4)
    assert answer.usage.completion_tokens
    tokenizer = load_pretrained_tokenizer(folders["plain"])
    assert answer.usage.prompt_tokens == len(encode_prompts([text], tokenizer)[0])


def test_the_codes_that_programs_look_for(client, folders):
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="nothing", prompt="a")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model=folders["plain"], prompt="a " * 500)
    assert too_long.value.code == "context_length_exceeded"


def test_only_json_and_only_by_its_own_name(served, folders):
    _, url = served
    body = {"model": folders["plain"], "prompt": "a"}
    assert post(url, "/v1/completions", body, **{"Content-Type": "text/plain"}).status_code == 415
    assert post(url, "/v1/completions", body, Host="evil.example:80").status_code == 403
    assert httpx.get(url, headers={"Host": "evil.example"}).status_code == 403
    assert httpx.get(url.replace("127.0.0.1", "localhost") + "/health").status_code == 200


def test_the_key(folders):
    with running([folders["plain"]], api_key="the key ö") as (_, url):
        body = {"model": folders["plain"], "prompt": "a", "max_tokens": 1}
        for given in (None, "wrong", "the key", "Bearer"):
            headers = {"Authorization": f"Bearer {given}"} if given else {}
            response = post(url, "/v1/completions", body, **headers)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 401
            assert post(url, "/tokenize", body, **headers).status_code == 401
        right = {"Authorization": "Bearer the key ö".encode()}
        assert post(url, "/v1/completions", body, **right).status_code == 200
        assert httpx.get(f"{url}/health").status_code == 200
        assert httpx.get(url).status_code == 200


# ---- many at once, and clients that vanish

# A drawn text could end with its first token; this one goes on.
LASTING = {"prompt": "a", "temperature": 0}


@pytest.fixture
def gated(folders):
    """A server of one model whose steps are let through, with places for two texts and two more."""
    limits = Limits(max_request_bytes=10_000, max_tokens=100, queue_size=2)
    with running([folders["plain"]], limits=limits, batch_size=2) as (server, url):
        engine = server.models[folders["plain"]].engine
        gate = Gate(engine)
        yield server, url, engine, gate
        gate.open()


def two_that_are_written(pool, url, body, engine, gate):
    """The answers, to come, of two texts that fill the batch."""
    asked = [pool.submit(post, url, "/v1/completions", body)]
    until(lambda: engine.num_going == 1)
    asked.append(pool.submit(post, url, "/v1/completions", body))
    until(lambda: engine.num_waiting == 1)
    gate.passes.release()
    until(lambda: engine.num_going == 2)
    return asked


def test_more_than_there_is_room_for_is_told_to_come_back(gated, folders):
    _, url, engine, gate = gated
    body = {"model": folders["plain"], **LASTING, "max_tokens": 3}
    with ThreadPoolExecutor(5) as pool:
        asked = two_that_are_written(pool, url, body, engine, gate)
        asked += [pool.submit(post, url, "/v1/completions", body) for _ in range(2)]
        until(lambda: engine.num_waiting == 2)
        refused = post(url, "/v1/completions", body)
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "queue_full"
        assert httpx.get(f"{url}/health").json()["waiting"] == 2
        gate.open()
        assert [one.result().status_code for one in asked] == [200] * 4
    assert "at most 100" in post(url, "/v1/completions", {**body, "max_tokens": 101}).text


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_vanishes_stops_its_text(gated, folders, stream):
    _, url, engine, gate = gated
    body = json.dumps({"model": folders["plain"], **LASTING, "max_tokens": 90, "stream": stream})
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
        client.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
        until(lambda: engine.num_going == 1)
        [going] = engine._going
        if stream:
            assert b"200 OK" in client.recv(1000)
    until(lambda: going.text.is_cancelled)
    steps = gate.steps
    gate.open()
    until(lambda: engine.num_going == 0)
    assert gate.steps <= steps + 2


def test_a_text_that_waits_for_a_client_that_is_gone_is_never_begun(gated, folders):
    _, url, engine, gate = gated
    body = {"model": folders["plain"], **LASTING, "max_tokens": 3}
    with ThreadPoolExecutor(3) as pool:
        asked = two_that_are_written(pool, url, body, engine, gate)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json={**body, "max_tokens": 99}, timeout=0.2)
        [waiting] = engine._waiting
        until(lambda: waiting.is_cancelled)
        gate.open()
        assert [one.result().status_code for one in asked] == [200] * 2
    until(lambda: engine.num_waiting == 0)
    assert gate.steps <= 5


def test_a_model_that_breaks_fails_its_texts_alone(gated, folders):
    server, url, engine, gate = gated
    gate.is_open = True
    body = {"model": folders["plain"], **LASTING, "max_tokens": 3}
    right = gate.batch.step

    def broken(tokens):
        raise RuntimeError("no\nmemory")

    gate.batch.step = broken
    response = post(url, "/v1/completions", body)
    assert response.status_code == 503
    assert "RuntimeError: no memory" in response.json()["error"]["message"]
    with httpx.stream("POST", f"{url}/v1/completions", json={**body, "stream": True}) as stream:
        events = [line for line in stream.iter_lines() if line]
    assert "RuntimeError" in events[-1] and "[DONE]" not in events[-1]

    gate.batch.step = lambda tokens: right(tokens) * float("nan")
    assert "gives NaN" in post(url, "/v1/completions", body).json()["error"]["message"]
    gate.batch.step = right
    assert post(url, "/v1/completions", body).status_code == 200


def test_a_server_that_stops_ends_its_answers(folders):
    events = []
    with running([folders["plain"]]) as (server, url):
        engine = server.models[folders["plain"]].engine
        gate = Gate(engine)
        body = {"model": folders["plain"], **LASTING, "max_tokens": 90, "stream": True}

        def read():
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as stream:
                events.extend(line for line in stream.iter_lines() if line)

        thread = threading.Thread(target=read)
        thread.start()
        until(lambda: engine.num_going == 1)
        threading.Timer(2.5, gate.open).start()
    thread.join()
    assert "the server is stopping" in events[-1]


def test_a_port_in_use_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"^--port {port}: in use on 127.0.0.1; name another"):
            bind("127.0.0.1", port)
    with pytest.raises(InputError, match="^--host 203.0.113.7: no address of this machine"):
        bind("203.0.113.7", 0)
    with pytest.raises(InputError, match="^--host no such host: no such address"):
        bind("no such host", 0)

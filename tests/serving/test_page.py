"""The page in a real browser: what it shows is what the server says, and nothing a model writes is
more than text.
"""

import math

import httpx
import pytest
import torch
from playwright.sync_api import expect

from hfscale.data.tokenizer import load_pretrained_tokenizer
from hfscale.generation.prompts import write_turns
from hfscale.serving.page import content_security_policy, read_page
from tests.browser import chromium
from tests.serving.running import Gate, post, running, save_models, until

pytestmark = pytest.mark.slow
DESKTOP = {"viewport": {"width": 1200, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 780}, "is_mobile": True, "has_touch": True}
MARKUP = "<img src=x onerror=document.title='hit'><script>document.title='hit'</script> & <b>x</b>"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("paged"))


@pytest.fixture(scope="module")
def served(folders):
    with running([folders["chat"], folders["plain"], folders["task"]]) as server_and_url:
        yield server_and_url


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture
def opened(browser):
    """What opens the page of an address; it must ask nobody else, and complain about nothing."""
    contexts = []
    complaints = []
    asked = []

    def open_page(url, **options):
        context = browser.new_context(**{**DESKTOP, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        return page

    open_page.complaints = complaints
    yield open_page
    for context in contexts:
        context.close()
    hosts = {httpx.URL(url).host for url in asked if not url.startswith("blob:")}
    assert hosts == {"127.0.0.1"}
    assert complaints == []


def say(page, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator("#text")).to_have_value("")


def set_up(page, **values) -> None:
    """Write settings, and close them again."""
    page.click("#tune")
    for name, value in values.items():
        page.fill(f"#{name}", str(value))
    page.click("#tune")


def test_a_conversation(served, folders, opened):
    _, url = served
    page = opened(url)
    set_up(page, temperature=0, max_tokens=8, system="be short")
    turns = [{"role": "system", "content": "be short"}]
    for text in ("say a word", "another word"):
        turns.append({"role": "user", "content": text})
        say(page, text)
        body = {"model": folders["chat"], "messages": turns, "temperature": 0, "max_tokens": 8}
        answer = post(url, "/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
        turns.append({"role": "assistant", "content": answer})
        assert page.locator(".model .said").last.text_content() == answer
    assert page.locator(".user .said").all_text_contents() == ["say a word", "another word"]

    page.locator("details.seen summary").last.click()
    seen = page.locator(".prompt span").last
    expect(seen).to_be_visible()
    prompt = write_turns(turns[:-1], load_pretrained_tokenizer(folders["chat"]))
    shown = "".join(page.locator(".prompt span").all_text_contents())
    assert shown.replace("⏎", "").startswith(prompt[:60])
    tokens = post(url, "/tokenize", {"model": folders["chat"], "messages": turns[:-1]}).json()
    assert page.locator(".prompt span").count() == tokens["count"]

    page.click("#clear")
    expect(page.locator(".turn")).to_have_count(0)


def test_tokens_show_what_else_could_have_come(served, folders, opened):
    _, url = served
    page = opened(url)
    page.select_option("select", folders["plain"])
    set_up(page, temperature=0, max_tokens=6)
    say(page, "a word")
    body = {"model": folders["plain"], "prompt": "a word", "temperature": 0, "max_tokens": 6}
    choice = post(url, "/v1/completions", {**body, "logprobs": 5}).json()["choices"][0]
    assert page.locator(".model .said").text_content() == "a word" + choice["text"]

    page.hover(".token >> nth=0")
    rows = page.locator("#chances table >> nth=0").locator("tr")
    expect(rows).to_have_count(5)
    [first, *_] = choice["logprobs"]["token_logprobs"]
    assert rows.nth(0).text_content().endswith(f"{100 * math.exp(first):.1f} %")
    assert page.locator("#chances tr.taken").count() >= 1
    page.mouse.move(1, 1)
    expect(page.locator("#chances")).to_be_hidden()

    page.focus(".model .said")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#chances")).to_be_visible()
    expect(page.locator(".token").nth(0)).to_have_class("token " + tone(choice) + " active")
    page.keyboard.press("End")
    expect(page.locator(".token.active")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator("#chances")).to_be_hidden()


def tone(choice) -> str:
    """The class of the first token's colour."""
    chance = math.exp(choice["logprobs"]["token_logprobs"][0])
    return f"c{1 + sum(chance >= limit for limit in (0.02, 0.1, 0.35, 0.7))}"


def test_two_models_on_a_phone_in_the_dark(served, folders, opened):
    _, url = served
    page = opened(url, **PHONE, color_scheme="dark")
    set_up(page, temperature=0, max_tokens=5)
    page.tap("#beside")
    page.select_option("select >> nth=1", folders["task"])
    page.fill("#text", "Friday")
    page.tap("#send")
    expect(page.locator(".pane:nth-child(2) .facts")).to_be_visible()
    expect(page.locator("#send")).to_be_visible()
    for pane, name in ((1, "chat"), (2, "task")):
        turns = [{"role": "user", "content": "Friday"}]
        body = {"model": folders[name], "messages": turns, "temperature": 0, "max_tokens": 5}
        answer = post(url, "/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
        assert page.locator(f".pane:nth-child({pane}) .model .said").text_content() == answer
    page.locator(".pane:nth-child(1) .token").first.tap()
    expect(page.locator("#chances")).to_be_visible()
    width = "document.documentElement.scrollWidth - innerWidth"
    assert page.evaluate(width) <= 0
    for name in ("beside", "tune", "theme", "clear", "send"):
        box = page.locator(f"#{name}").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] >= 36
    back = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(back)
    page.tap("#theme")
    assert page.evaluate(back) != dark
    page.tap("#theme")
    assert page.evaluate(back) == dark


class Script:
    """A batch in which each row gets the same tokens, one after the other."""

    def __init__(self, ids, vocab_size):
        self.logits = torch.nn.functional.one_hot(torch.tensor(ids), vocab_size).float() * 50
        self.places: list[int] = []

    def join(self, rows):
        self.places += [0] * len(rows)
        return self.logits[:1].expand(len(rows), -1)

    def step(self, tokens):
        self.places = [place + 1 for place in self.places]
        return self.logits[self.places]

    def keep(self, places):
        self.places = [self.places[place] for place in places]


def test_markup_of_a_model_is_text(served, folders, opened):
    server, url = served
    engine = server.models[folders["chat"]].engine
    tokenizer = load_pretrained_tokenizer(folders["chat"])
    ids = [*tokenizer(MARKUP)["input_ids"], tokenizer.eos_token_id]
    kept, engine.batch = engine.batch, Script(ids, len(tokenizer))
    try:
        page = opened(url)
        set_up(page, max_tokens=200)
        say(page, "<b>x</b>")
        assert page.locator(".model .said").text_content() == MARKUP
        assert page.locator(".user .said").text_content() == "<b>x</b>"
        page.hover(".token >> nth=3")
        assert page.locator("main img, main script, main b, #chances img").count() == 0
        assert page.title() == "hfscale"
    finally:
        engine.batch = kept


def test_stop_ends_the_text_on_the_server(served, folders, opened):
    server, url = served
    engine = server.models[folders["chat"]].engine
    gate = Gate(engine)
    try:
        page = opened(url)
        set_up(page, temperature=0, max_tokens=50, stop="never there")
        page.fill("#text", "say a word")
        page.press("#text", "Enter")
        until(lambda: engine.num_going == 1)
        [going] = engine._going
        page.click("#halt")
        until(lambda: going.text.is_cancelled)
        expect(page.locator("#send")).to_be_visible()
        expect(page.locator(".facts", has_text="stopped")).to_be_visible()
    finally:
        gate.open()
        until(lambda: engine.num_going == 0)
        engine.batch = gate.batch


def test_a_full_context_loses_its_oldest_turn_and_errors_are_said(served, opened):
    _, url = served
    page = opened(url)
    set_up(page, temperature=0, max_tokens=4)
    for _ in range(3):
        say(page, "word " * 25)
    assert page.locator(".note").count() >= 1
    assert page.locator(".error").count() == 0
    say(page, "word " * 200)
    assert "leaves no room" in page.locator(".error").text_content()
    told = [line for line in opened.complaints if "400" in line]
    opened.complaints[:] = [line for line in opened.complaints if line not in told]


def test_settings_in_the_address_and_the_key(folders, opened):
    with running([folders["plain"]], api_key="secret") as (_, url):
        page = opened(f"{url}/#temperature=0&max_tokens=3&other=1")
        expect(page.locator(".hint")).to_contain_text("asks for a key")
        assert page.input_value("#temperature") == "0"
        page.fill("#key", "secret")
        page.press("#key", "Enter")
        expect(page.locator("select")).to_have_value(folders["plain"])
        say(page, "a word")
        assert "3 tokens" in page.locator(".facts").first.text_content()
    opened.complaints[:] = [line for line in opened.complaints if "401" not in line]


def test_the_policy_lets_nothing_else_in():
    policy = content_security_policy(read_page())
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert policy.count("'sha256-") == 2
    page = read_page()
    assert "http://" not in page and "https://" not in page
    assert "innerHTML" not in page and "style=" not in page

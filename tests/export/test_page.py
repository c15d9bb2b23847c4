"""The page that runs a model: in a real browser, without a network, it writes Python's tokens."""

import json

import pytest
import torch
from datasets import Dataset
from tokenizers import normalizers

from hfscale.data.tokenizer import train_bpe, train_char
from hfscale.data.tokens import encode_prompts
from hfscale.export.page_file import PAGE, check_as_page, read_page, write_page
from hfscale.export.runners import TorchRunner
from hfscale.process import InputError
from hfscale.tasks.chat_templates import set_chat_template
from recipes import export
from tests.browser import chromium
from tests.export.test_export import file_sizes_limited
from tests.tiny_models import GPT2, LLAMA, VOCAB_SIZE, save_tiny_model, tiny_model, tiny_tokenizer
from tests.tokenizer_kinds import make_tokenizer

TEXTS = [
    "the cat  sat's on\n\n the 123 mats\tand é e\u0301 日本 😀‍🔥 \x00 it'll we've I'D",
    "a<|endoftext|> b<|pad|>c<|endoftext|><|pad|>",
    " \r\n   \n x",
    "\u0085\u2028\u00a0\u3000\ufeff\u200b\u001c",  # what is white space is not the same everywhere
    "सभी मनुष्यों को गौरव และ ຄົນ ⅷ ² ١٢٣ ᠠ",
    "def f(x):\n\treturn x**2  # '''s\n",
    "",
]
NAME = "</script><script>alert(1)</script>{weights}"


def bpe():
    return train_bpe(Dataset.from_dict({"text": [*TEXTS, "the cat sat on the mat"]}), 600)


def char():
    return train_char(Dataset.from_dict({"text": TEXTS[:3]}))


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module", params=[bpe, char], ids=["bpe", "char"])
def shown(request, browser, tmp_path_factory):
    """A model, its tokenizer, and its page, opened without a network."""
    tokenizer = request.param()
    model = tiny_model("gpt2", {**GPT2, "layer_norm_epsilon": 1e-3}, len(tokenizer) + 2)
    folder = tmp_path_factory.mktemp("page")
    write_page(folder, model, tokenizer, NAME)
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.faults = []
    page.requests = []
    page.on("console", lambda message: page.faults.append(message.text))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("dialog", lambda dialog: page.faults.append(dialog.message))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto((folder / PAGE).as_uri())
    page.wait_for_selector("#check[data-done]")
    yield model, tokenizer, page
    assert page.faults == []
    assert page.requests == [(folder / PAGE).as_uri()]
    context.close()


def write(page, prompt, count):
    """What stands on the page after Write, and the ids of its tokens."""
    page.fill("#prompt", prompt)
    page.fill("#temperature", "0")
    page.fill("#max-new-tokens", str(count))
    page.click("#write")
    page.wait_for_selector("#text[data-done]")
    tokens = page.locator("#text .token")
    ids = tokens.evaluate_all("spans => spans.map(span => Number(span.dataset.id))")
    return page.text_content("#text"), ids


@pytest.mark.slow
def test_the_page_checks_itself_against_python(shown):
    _, tokenizer, page = shown
    facts = json.loads(page.text_content("#facts-json"))
    count = sum(len(proof["next_ids"]) for proof in facts["proof"])
    assert count > 60
    assert page.text_content("#check") == f"{count} of {count} tokens are those that Python writes"
    assert page.text_content("#name") == page.title() == NAME
    assert facts["proof"][0]["ids"] == encode_prompts(["The "], tokenizer)[0]


@pytest.mark.slow
def test_texts_become_the_same_tokens_and_the_same_texts_again(shown):
    _, tokenizer, page = shown
    found = page.evaluate(
        """texts => { const tokenizer = unpack().tokenizer;
        return texts.map(t => tokenizer.encode(t)).map(ids => [ids, tokenizer.decode(ids)]); }""",
        TEXTS,
    )
    for text, (ids, decoded) in zip(TEXTS, found, strict=True):
        assert ids == tokenizer(text)["input_ids"], text
        assert decoded == tokenizer.decode(ids), text


@pytest.mark.slow
def test_what_is_written_is_what_python_writes(shown):
    model, tokenizer, page = shown
    prompt = "the cat's é"
    [ids] = encode_prompts([prompt], tokenizer)
    room = model.config.n_positions + 1 - len(ids)  # the last one is written and not read
    expected = TorchRunner(model).continue_greedily(torch.tensor([ids]), room)[0].tolist()
    expected = expected[: expected.index(0)] if 0 in expected else expected  # EOS
    text, written = write(page, prompt, 1000)
    assert len(expected) > 20 and written == expected
    # A character whose last bytes are missing is not on the page yet.
    assert text.rstrip("\ufffd") == prompt + tokenizer.decode(written).rstrip("\ufffd")
    page.locator("#text .token").first.click()
    assert "was written; likeliest: " in page.text_content("#readout")


@pytest.mark.slow
def test_a_prompt_beyond_the_context_and_an_empty_one_are_told(shown):
    model, _, page = shown
    page.fill("#prompt", "the cat " * 100)
    page.click("#write")
    assert f"the model reads {model.config.n_positions}" in page.text_content("#status")
    assert len(write(page, "", 3)[1]) == 3  # from the beginning of a document


@pytest.mark.slow
def test_stop_stops_and_the_next_text_is_whole(shown):
    _, _, page = shown
    page.fill("#prompt", "the cat")
    page.fill("#max-new-tokens", "50")
    page.evaluate("for (const _ of [1, 2]) document.getElementById('write').click()")
    page.wait_for_selector("#text[data-done='0']")
    assert page.text_content("#text") == "the cat" and page.text_content("#write") == "Write"
    assert write(page, "the cat", 5) == write(page, "the cat", 5)


@pytest.mark.slow
def test_a_chat_model_is_asked_as_it_was_taught(browser, tmp_path):
    tokenizer = tiny_tokenizer()
    set_chat_template(tokenizer, "chatml")
    model = tiny_model("gpt2", GPT2, len(tokenizer))
    write_page(tmp_path, model, tokenizer, "chat")
    page = browser.new_page()
    page.goto((tmp_path / PAGE).as_uri())
    page.wait_for_selector("#write:not([disabled])")
    turns = [{"role": "user", "content": "hi"}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    expected = TorchRunner(model).continue_greedily(torch.tensor([ids]), 5)[0].tolist()
    # At once, before the page has checked itself, which it does then.
    assert write(page, "hi", 5)[1] == expected
    page.wait_for_selector("#check[data-done]")
    assert page.text_content("#check").endswith("tokens are those that Python writes")
    page.close()


def test_the_page_holds_the_model_and_the_tokenizer(tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_model("gpt2", GPT2, VOCAB_SIZE)
    write_page(tmp_path, model, tokenizer, NAME)
    assert NAME not in (tmp_path / PAGE).read_text()
    read, read_tokenizer = read_page(tmp_path)
    weights = read.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert read_tokenizer(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]


def test_an_export_is_compared_and_a_full_disk_leaves_nothing(tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat and on the log, and more words\n")
    folder = save_tiny_model("gpt2", GPT2, tmp_path / "model")
    words = [
        *("--model", str(folder), "--source", str(tmp_path / "text.txt"), "--to", "html"),
        *("--output_dir", str(tmp_path / "export"), "--outtype", "f16", "--tolerance", "0.1"),
    ]
    before = sorted(tmp_path.iterdir())
    with file_sizes_limited(60_000), pytest.raises(InputError, match="free some space"):
        export.main(words)
    assert sorted(tmp_path.iterdir()) == before
    export.main(words)
    names = {path.name for path in (tmp_path / "export").iterdir()}
    assert names == {"model.html", "README.md", "export.json", "manifest.json"}
    record = json.loads((tmp_path / "export" / "export.json").read_text())
    assert 0 < record["logits"]["largest_difference"] < 0.1


CANNOT_BE_SHOWN = {
    "kind llama": lambda: tiny_model("llama", LLAMA, VOCAB_SIZE),
    "activation_function is 'relu'": lambda: tiny_model(
        "gpt2", {**GPT2, "activation_function": "relu"}, VOCAB_SIZE
    ),
    "a page of 31 MB, allowed are 30; --outtype f16 halves it": lambda: tiny_model(
        "gpt2", {**GPT2, "n_positions": 180_000}, VOCAB_SIZE
    ),
    "id 269 is outside the model's vocabulary of 200": lambda: tiny_model("gpt2", GPT2, 200),
}


@pytest.mark.parametrize("words", CANNOT_BE_SHOWN)
def test_a_model_that_the_page_cannot_run_is_refused(words):
    with pytest.raises(InputError, match=words):
        check_as_page(CANNOT_BE_SHOWN[words](), tiny_tokenizer(), "f32")


def normalized():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def spaced():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer.add_prefix_space = True
    return tokenizer


@pytest.mark.parametrize(
    ("words", "make"),
    [
        ("changes text first", normalized),
        ("WordPiece", lambda: make_tokenizer("BOS and SEP (BERT)")),
        ("changes text first", lambda: make_tokenizer("sentencepiece with BOS (Llama)")),
        ("BPE with another split", spaced),
    ],
)
def test_a_tokenizer_that_the_page_cannot_run_is_refused(words, make):
    with pytest.raises(InputError, match=words):
        check_as_page(tiny_model("gpt2", GPT2, 1000), make(), "f32")

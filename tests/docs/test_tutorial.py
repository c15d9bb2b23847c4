"""The tutorial's map: its script fails as the page says, and both languages lead to the same places."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {name: (DOCS / name).read_text("utf-8") for name in ("tutorial.md", "tutorial.zh.md")}


def script(page: str) -> str:
    [found] = re.findall(r"^```python\n(.*?)^```", PAGES[page], re.M | re.S)
    return found


def without_comments(code: str) -> str:
    return re.sub(r"\s*#.*", "", code)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny GPT-2 with its tokenizer, as the Hub's: no padding token."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

    folder = tmp_path_factory.mktemp("gpt2")
    texts = ["Hello, how are you?", "I am fine, thank you."]
    tokenizer = GPT2Tokenizer().train_new_from_iterator(texts, 300, show_progress=False)
    tokenizer.save_pretrained(folder)
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 32}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    return folder


def test_the_script_of_the_page(checkpoint):
    """It stops at the padding; with that mended, at the name that it never imported."""
    code = script("tutorial.md").replace('"gpt2"', repr(str(checkpoint)))
    with pytest.raises(ValueError, match="does not have a padding token"):
        exec(code, {})
    padded = code.replace("texts = [", "tokenizer.pad_token = tokenizer.eos_token\ntexts = [")
    with pytest.raises(NameError, match="'TrainingArguments' is not defined"):
        exec(padded, {})


def test_its_rows_are_those_of_old_examples():
    rows = re.findall(r"^\| (\d+) \|", (DOCS / "old_examples.md").read_text("utf-8"), re.M)
    for page, sign in (("tutorial.md", "# row"), ("tutorial.zh.md", "# 第")):
        named = [line.split(sign)[1] for line in script(page).splitlines() if sign in line]
        numbers = {number for line in named for number in re.findall(r"\d+", line)}
        assert len(numbers) == 14 and numbers <= set(rows)


def test_both_languages_have_the_same_script_and_lead_to_the_same_places():
    scripts = {without_comments(script(page)) for page in PAGES}
    assert len(scripts) == 1
    links = [re.findall(r"\]\(([^)#][^)]*)\)", text) for text in PAGES.values()]
    assert links[0][1:] == links[1][1:]
    assert links[0][0] == "tutorial.zh.md" and links[1][0] == "tutorial.md"


def test_formulas_are_the_same_in_both_languages():
    formulas = [re.findall(r"^\$\$.*\$\$$", text, re.M) for text in PAGES.values()]
    assert formulas[0] == formulas[1] and len(formulas[0]) == 5

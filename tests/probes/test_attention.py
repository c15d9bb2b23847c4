"""Attention of GPT-2 against the model's own numbers, hand-built heads, and other ways to the same
result.
"""

import base64
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from hfscale.arguments import StreamArguments
from hfscale.data.fingerprints import text_fingerprint
from hfscale.data.splits import join_parts, load_parts
from hfscale.data.tokenizer import load_pretrained_tokenizer, train_bpe
from hfscale.metrics.perplexity import score_documents
from hfscale.models import load_model
from hfscale.probes import attention, attention_page
from hfscale.probes.held_out_sentence import first_sentence, held_out_sentence
from hfscale.process import InputError
from recipes import attention_maps
from tests.browser import chromium, page_faults
from tests.tiny_models import MAMBA, TOGETHER, save_tiny_model

SENTENCE = "The quick brown fox jumps over the lazy dog"
SHARP = 20.0  # scales queries and keys, so that softmax picks one token


def save_model(folder, **config):
    torch.manual_seed(0)
    tokenizer = train_bpe(
        Dataset.from_dict({"text": [SENTENCE, SENTENCE.lower(), "a list of items"] * 3}), 300
    )
    shape = {
        "vocab_size": len(tokenizer),
        "n_layer": 3,
        "n_head": 4,
        "n_embd": 32,
        "n_positions": 40,
    }
    GPT2LMHeadModel(
        GPT2Config(
            **shape | {"initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 0} | config
        )
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_pretrained_tokenizer(str(folder))


@pytest.fixture(scope="module")
def model(folder):
    return load_model(str(folder), attn_implementation="eager")


@pytest.fixture(scope="module")
def ids(model, tokenizer):
    return attention.encode_sentence(model, tokenizer, SENTENCE)


def with_weights(module, values: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        for name, value in values.items():
            module.get_parameter(name).copy_(value)


def built_model(positions: int, vocab: int) -> GPT2LMHeadModel:
    """Two layers of one head each. The stream has three blocks: position, token, and the token
    before. Layer 0 attends to the token before and writes what it is into the third block; layer 1
    looks for its own token there.
    """
    width = positions + 2 * vocab
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab,
            n_positions=positions,
            n_embd=width,
            n_layer=2,
            n_head=1,
            n_inner=4,
            attn_pdrop=0,
            embd_pdrop=0,
            resid_pdrop=0,
            bos_token_id=0,
            eos_token_id=0,
            attn_implementation="eager",
        )
    ).eval()
    position, token = slice(0, positions), slice(positions, positions + vocab)
    before = slice(positions + vocab, width)
    blocks = model.transformer.h
    for block in blocks:
        with_weights(block, {"ln_1.weight": torch.ones(width), "ln_2.weight": torch.ones(width)})
    with_weights(model.transformer.wte, {"weight": torch.eye(width)[token]})
    with_weights(model.transformer.wpe, {"weight": torch.eye(width)[position]})
    first, second = torch.zeros(width, 3 * width), torch.zeros(width, 3 * width)
    shift = torch.eye(positions).roll(-1, 1)  # row i: the position before i
    first[position, position] = SHARP * shift
    first[position, slice(width, width + positions)] = SHARP * torch.eye(positions)
    first[token, slice(2 * width + positions, 2 * width + positions + vocab)] = torch.eye(vocab)
    second[token, slice(0, vocab)] = SHARP * torch.eye(vocab)
    second[before, slice(width, width + vocab)] = SHARP * torch.eye(vocab)
    write = torch.zeros(width, width)
    write[token, before] = torch.eye(vocab)
    with torch.no_grad():
        blocks[0].attn.c_attn.weight.copy_(first)
        blocks[0].attn.c_proj.weight.copy_(write)
        blocks[1].attn.c_attn.weight.copy_(second)
    return model


class StubTokenizer:
    """Puts nothing in front of a text."""

    bos_token_id, eos_token_id, all_special_ids, is_fast = 0, 0, [0], False

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __call__(self, text, **kwargs) -> dict:
        return {"input_ids": [1] if isinstance(text, str) else [[1] for _ in text]}

    def get_vocab(self) -> dict:
        return {}


# ---- weights


def test_weights_are_the_models_own_and_rows_sum_to_one(model, folder, ids):
    weights = attention.attention_weights(model, ids)[0]
    upstream = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()(
        ids, output_attentions=True
    )
    torch.testing.assert_close(weights, torch.cat(upstream.attentions), atol=1e-6, rtol=0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-6, rtol=0)
    assert weights.shape == (3, 4, ids.shape[1], ids.shape[1]) and not weights.triu(1).any()


# ---- scores


def test_scores_by_hand():
    weights = torch.tensor([[[[1.0, 0, 0], [0.25, 0.75, 0], [0.5, 0.25, 0.25]]]])
    scores = {name: value.item() for name, value in attention.head_scores(weights).items()}
    entropies = (
        -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)),
        -(0.5 * math.log(0.5) + 0.5 * math.log(0.25)),
    )
    assert scores == pytest.approx(
        {
            "entropy": sum(entropies) / 2,
            "mean_distance": (0.25 + 1.0 + 0.25) / 2,
            "previous_token": 0.25,
            "first_token": 0.375,
        }
    )


def test_built_heads_are_found():
    model, tokenizer = built_model(positions=32, vocab=20), StubTokenizer(20)
    ids = torch.tensor([[0, 3, 7, 7, 2, 19, 4]])
    previous = attention.head_scores(attention.attention_weights(model, ids)[0])["previous_token"]
    assert previous[0, 0] > 0.999 and previous[1, 0] < 0.5
    induction = attention.induction_scores(model, tokenizer, length=10)
    assert induction.shape == (2, 1) and induction[1, 0] > 0.999 and induction[0, 0] < 0.001
    broken = built_model(
        positions=32, vocab=20
    )  # without the copy of the token before there is nothing to find
    broken.transformer.h[0].attn.c_proj.weight.data.zero_()
    assert attention.induction_scores(broken, tokenizer, length=10)[1, 0] < 0.2


def test_induction_reads_the_right_cells(model, tokenizer, monkeypatch):
    """Of [prefix, r, r] with r of 5: rows 6 to 10 attend to the token after their first occurrence,
    columns 2 to 6.
    """
    seen = []

    def fake(model, input_ids):
        seen.append(input_ids)
        weights = torch.zeros(len(input_ids), 3, 4, 11, 11)
        weights[:, 1, 2, range(6, 11), range(2, 7)] = torch.tensor([1.0, 0.5, 0.5, 0.0, 1.0])
        weights[:, 0, 0, range(4, 6), range(0, 2)] = (
            1.0  # the same diagonal, but rows of the first r
        )
        return weights

    monkeypatch.setattr(attention, "attention_weights", fake)
    scores = attention.induction_scores(model, tokenizer, length=5, sequences=3)
    expected = torch.zeros(3, 4)
    expected[1, 2] = 0.6
    torch.testing.assert_close(scores, expected)
    [drawn] = seen
    assert (
        drawn.shape == (3, 11)
        and (drawn[:, 1:6] == drawn[:, 6:]).all()
        and (drawn[:, 0] == 0).all()
    )
    assert all(
        len(set(row)) == 6 for row in drawn[:, :6].tolist()
    )  # all different: only one earlier occurrence
    assert not set(drawn[:, 1:].flatten().tolist()) & set(tokenizer.all_special_ids)


def test_rollout_by_hand():
    first, second = torch.tensor([[1.0, 0], [0.5, 0.5]]), torch.tensor([[1.0, 0], [1.0, 0]])
    layers = attention.rollout(torch.stack([first, second])[:, None])
    mixed = [torch.tensor([[1, 0], [0.25, 0.75]]), torch.tensor([[1, 0], [0.5, 0.5]])]
    torch.testing.assert_close(layers, torch.stack([mixed[0], mixed[1] @ mixed[0]]))
    torch.testing.assert_close(layers.sum(-1), torch.ones(2, 2))


# ---- ablation and lens


def test_ablation_equals_removing_the_heads_rows_from_the_output_matrix(
    folder, model, ids, monkeypatch
):
    monkeypatch.setattr(
        attention, "TOKENS_AT_ONCE", 3 * ids.shape[1]
    )  # three heads at a time, then one
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss, effects = attention.ablate_heads(model, ids)
    for layer, head in np.ndindex(3, 4):
        other = GPT2LMHeadModel.from_pretrained(folder).eval()
        other.transformer.h[layer].attn.c_proj.weight.data[8 * head : 8 * head + 8] = 0
        with torch.no_grad():
            expected = other(ids, labels=ids).loss.item()
        assert loss + effects[layer, head].item() == pytest.approx(expected, abs=1e-5)
    assert effects.abs().min() > 1e-5  # every head does something, so none was left out
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_loss_is_that_of_score(model, tokenizer, ids):
    scores = score_documents(model, tokenizer, [SENTENCE])
    assert attention.ablate_heads(model, ids)[0] == pytest.approx(
        scores.sums[0, 0] / scores.sums[0, 1], rel=1e-6
    )


def test_lens_of_a_layer_is_the_model_cut_there(folder, model, ids):
    lens = attention.logit_lens(model, ids, top_k=5)
    for depth in range(4):
        cut = GPT2LMHeadModel.from_pretrained(folder).eval()
        cut.transformer.h = cut.transformer.h[:depth]
        with torch.no_grad():
            output = cut(ids, labels=ids)
        top = output.logits[0].softmax(-1).topk(5)
        torch.testing.assert_close(lens["top_probabilities"][depth], top.values, atol=1e-5, rtol=0)
        assert torch.equal(lens["top_ids"][depth], top.indices)
        assert lens["loss"][depth].item() == pytest.approx(output.loss.item(), abs=1e-5)


# ---- the recipe and its page


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    attention_maps.main(["--model", str(folder), "--explain", "1", "2", "--output_dir", str(out)])
    return out


def page_data(path):
    text = path.read_text("utf-8")
    return text, json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1]
    )


def shown_weights(reading):
    """Of three layers with four heads and the rollout."""
    two_bytes = np.frombuffer(base64.b64decode(reading["weights"]), "<u2")
    return two_bytes.reshape(3, 5, -1) / 65535


def test_files_hold_the_numbers(made, model, ids):
    weights = attention.attention_weights(model, ids)[0].numpy()
    saved = np.load(made / "attention.npz")
    np.testing.assert_allclose(saved["weights"], weights, atol=1e-6)
    record = json.loads((made / "attention.json").read_text())
    assert record["tokens"][0] == "<|endoftext|>" and "".join(record["tokens"][1:]) == SENTENCE
    assert [(head["layer"], head["head"]) for head in record["heads"]] == list(np.ndindex(3, 4))
    entropy = attention.head_scores(torch.tensor(weights))["entropy"][1, 2].item()
    assert record["heads"][6]["entropy"] == pytest.approx(entropy)
    assert record["logit_lens"][-1]["loss"] == pytest.approx(record["loss"], abs=1e-5)
    for name in ("attention_maps.png", "head_scores.png"):
        assert (made / name).read_bytes()[:4] == b"\x89PNG"
    text = (made / "attention.txt").read_text()
    assert "A, Z and O equal the model's own to 1e-05" in text and "S = Q K^T / sqrt(8)" in text


def test_page_needs_nothing_else_and_its_weights_are_right(made, model, ids):
    text, data = page_data(made / "attention.html")
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|src=|<link|@import|url\(", text)
    (reading,) = data["readings"]
    assert len(text.encode()) < 3_000_000
    assert "equal the model's own" in reading["explain"]["conclusion"]
    weights = attention.attention_weights(model, ids)[0]
    maps = torch.cat([weights, attention.rollout(weights)[:, None]], dim=1).numpy()
    np.testing.assert_allclose(
        shown_weights(reading), maps[..., *np.tril_indices(ids.shape[1])], atol=1e-5
    )


def test_page_of_a_long_sentence_stays_small(tmp_path):
    layers, heads, tokens = 12, 13, 300
    weights = np.tril(np.ones((tokens, tokens), np.float32)) / np.arange(1, tokens + 1)[:, None]
    record = {
        "tokens": ["x"] * tokens,
        "logit_lens": [{"loss": 1.0, "top": [[["<b>", 0.5]]] * tokens}] * 13,
    }
    weights = np.broadcast_to(weights, (layers, heads, tokens, tokens))
    for readings in (1, 2):
        attention_page.write_page(tmp_path / "page.html", record, [weights] * readings)
        text, data = page_data(tmp_path / "page.html")
        assert len(data["readings"]) == readings and len(text.encode()) < 3_000_000
        for reading in data["readings"]:
            shown = reading["shown_tokens"]
            assert 80 / readings < shown < tokens and "<b>" not in text
            assert len(reading["logit_lens"][0]["top"]) == shown
        record["held_out"] = dict(record)


# ---- a sentence of the run's own text


LINES = [
    "too short.",
    "No whole sentence in this line",
    "The lazy dog jumps over a quick list. More.",
]


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """The model as a run that names its text."""
    place = tmp_path_factory.mktemp("runs")
    source = place / "lines.txt"
    source.write_text("\n".join(LINES * 10))
    args = StreamArguments(source=[str(source)], sample_by="line")
    documents = join_parts(load_parts(args, seed=3), args)
    fingerprint = {name: text_fingerprint(part) for name, part in documents.items()}
    record = {
        "config": {"source": [str(source)], "sample_by": "line", "seed": 3},
        "data": {"fingerprint": fingerprint, "bytes": {"train": 900, "validation": 50}},
    }
    shutil.copytree(folder, place / "run")
    (place / "run" / "run.json").write_text(json.dumps(record))
    return place / "run"


@pytest.fixture(scope="module")
def two(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("two") / "out"
    words = ["--model", str(run), "--explain", "1", "2", "--output_dir", str(out)]
    attention_maps.main([*words, "--sentence", "a list of items"])
    return out


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("\n".join(LINES), "The lazy dog jumps over a quick list."),
        ("Ab. This one is long enough! Next one is not.", "This one is long enough!"),
        (
            "我喜欢。今天的天气非常非常好，我们一起去公园吧。",
            "今天的天气非常非常好，我们一起去公园吧。",
        ),
        ("for x in range(10):\n    print(x)", None),
    ],
)
def test_a_whole_sentence_is_taken(text, sentence):
    assert first_sentence([text], lambda found: True) == sentence
    assert first_sentence([text], lambda found: False) is None


def test_a_sentence_of_the_held_out_text_is_read_beside_the_given_one(two, model, tokenizer):
    record = json.loads((two / "attention.json").read_text())
    held_out = record["held_out"]
    assert record["sentence"] == "a list of items" and held_out["sentence"] in LINES[2]
    ids = attention.encode_sentence(model, tokenizer, held_out["sentence"])
    weights = attention.attention_weights(model, ids)[0].numpy()
    np.testing.assert_allclose(
        np.load(two / "attention.npz")["held_out_weights"], weights, atol=1e-6
    )
    _, data = page_data(two / "attention.html")
    first, second = data["readings"]
    assert second["tokens"] == held_out["tokens"] != first["tokens"]
    np.testing.assert_allclose(
        shown_weights(second)[:, :4], weights[..., *np.tril_indices(ids.shape[1])], atol=1e-5
    )
    assert held_out["loss"] == pytest.approx(attention.ablate_heads(model, ids)[0], abs=1e-5)
    assert held_out["sentence"] in (two / "attention.txt").read_text()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bytes": {"train": None, "validation": None}}, "its text is a stream, or too large"),
        ({"bytes": {"train": 10**12, "validation": 9}}, "its text is a stream, or too large"),
        ({"fingerprint": {"validation": "0"}}, "is no longer the text of"),
    ],
)
def test_why_there_is_no_second_sentence(change, says, run, tmp_path):
    record = json.loads((run / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(record | {"data": record["data"] | change}))
    sentence, why = held_out_sentence(str(tmp_path), lambda text: True)
    assert sentence is None and says in why and "source: missing" not in why
    assert held_out_sentence(str(tmp_path / "none"), lambda text: True) == (None, None)
    assert held_out_sentence(str(run), lambda text: False)[1].endswith("short enough")


def test_the_page_is_read_on_a_desk_and_on_a_phone_by_day_and_by_night(two):
    address = (two / "attention.html").as_uri()
    with chromium() as browser:
        faults = page_faults(browser, address)
        assert len(faults) == 6 and not any(faults.values()), faults
        page = browser.new_page()
        page.goto(address)
        for number, reading in enumerate(page_data(two / "attention.html")[1]["readings"]):
            page.select_option("#reading", str(number))
            assert reading["sentence"] in page.inner_text("#facts")
            assert page.locator("#sentence button").count() == len(reading["tokens"])
            assert page.locator("#map rect.cell").count() == np.tri(len(reading["tokens"])).sum()
            steps = page.locator("#explain table.matrix")
            assert steps.count() == len(reading["explain"]["steps"])
            for i, step in enumerate(reading["explain"]["steps"]):  # each number has its colour
                uncoloured = steps.nth(i).locator("td[style^='color']").count()
                assert uncoloured == sum(text == "-inf" for row in step["values"] for text in row)
        page.locator("#thumbs button").last.focus()
        page.keyboard.press("Enter")  # as a click does
        assert page.locator("#layer").input_value() == "2"
        assert page.locator("#head").input_value() == "3"
        assert (
            page.locator("#map svg")
            .get_attribute("aria-label")
            .startswith("attention of layer 2, head 3: ")
        )
        page.close()


# ---- bad input


def test_what_is_refused(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_tiny_model("mamba", MAMBA, tmp_path / "mamba")
    save_tiny_model("bloom", TOGETHER["bloom"], tmp_path / "bloom")
    before = sorted(tmp_path.iterdir())
    for words, message in (
        (
            ["--sentence", "the lazy dog " * 30],
            r"sentence: \d+ tokens; the model's context takes 1 to 39 .*short",
        ),
        (["--sentence", ""], "sentence: 0 tokens.*write some text"),
        (
            ["--model", "mamba"],
            "model: MambaForCausalLM returns no attention weights of heads, as models without",
        ),
        (
            ["--model", "bloom", "--explain", "0", "1"],
            "explain 0 1: BloomAttention does something that the steps do not know: A, .* leave "
            "--explain out: the maps and scores need none of it",
        ),
        (
            ["--explain", "3", "0"],
            "explain 3 0: expected a layer from 0 to 2 and a head from 0 to 3",
        ),
        (["--explain", "0", "-1"], "explain 0 -1"),
        (["--explain", "0"], r"--explain \[0\].*two numbers"),
        (["--top_k", "0"], "--top_k: got '0', expected at least 1"),
        (["--model", "./missing"], "model ./missing: "),
    ):
        with pytest.raises(InputError, match=message) as caught:
            attention_maps.main(["--model", str(folder), "--output_dir", "out", *words])
        assert "\n" not in str(caught.value) and sorted(tmp_path.iterdir()) == before


def test_earlier_results_are_kept_unless_told(made, folder):
    words = ["--model", str(folder), "--output_dir", str(made)]
    with pytest.raises(InputError, match="exists"):
        attention_maps.main(words)
    attention_maps.main([*words, "--overwrite", "--sentence", "a list"])
    assert json.loads((made / "attention.json").read_text())["sentence"] == "a list"


def test_a_model_that_returns_no_weights_is_refused(folder, ids):
    with pytest.raises(InputError, match="eager"):
        attention.attention_weights(load_model(str(folder)), ids)

"""Copies found as by brute force, exposure by rank, a planted secret that a model has learned."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hfscale.data.tokenizer import load_tokenizer
from hfscale.probes import memorization
from hfscale.probes.memorization import count_words, exposure_bits, longest_copy, loss_gap
from hfscale.process import InputError


def test_the_longest_copy_is_that_of_brute_force():
    generator = np.random.default_rng(0)
    corpus = " ".join(generator.choice(list("abc"), 300))
    for _ in range(20):
        words = [str(word) for word in generator.choice(list("abc"), 30)]
        runs = [" ".join(words[i:j]) for i in range(30) for j in range(i + 1, 31)]
        longest = max(len(run.split()) for run in runs if run in corpus)
        assert len(longest_copy(" ".join(words), corpus).split()) == longest
    assert longest_copy("x  the cat\nsat y", "now the cat\nsat down") == "the cat\nsat"
    assert longest_copy("nothing here", "all else") == longest_copy("", "all else") == ""


@pytest.mark.parametrize(
    ("text", "training_text", "copy", "words"),
    [
        ("我喜欢今天的天气", "昨天很冷,今天的天气很好", "今天的天气", 5),
        ("สวัสดีครับ", "ขอสวัสดีทุกคน", "สวัสดี", 4),
        ("कि की गया", "वह की गया था", "की गया", 2),
        ("東京 tower に行く", "the tower に行きます", "tower に行", 3),
    ],
)
def test_a_copy_in_any_script_is_found_word_by_word(text, training_text, copy, words):
    found = longest_copy(text, training_text)
    assert (found, count_words(found)) == (copy, words)


def test_exposure_is_the_rank_among_all_texts_of_the_form(monkeypatch):
    seen = []

    class Scores:
        def __init__(self, texts):  # likelier the larger the number
            seen.extend(texts)
            self.sums = np.array([[-float(text.split()[1]), 1] for text in texts])

    monkeypatch.setattr(
        memorization, "score_documents", lambda model, tokenizer, texts, **_: Scores(texts)
    )
    found = exposure_bits(None, None, "pin 97", "pin ##")
    assert sorted(seen) == [f"pin {i:02}" for i in range(100)]
    assert found == {
        "rank": 3,
        "candidates": 100,
        "exposure_bits": pytest.approx(np.log2(100 / 3)),
        "exposure_limit_bits": pytest.approx(np.log2(100)),
    }
    seen.clear()
    found = exposure_bits(None, None, "pin 999999", "pin ######", candidates=50)
    assert found["candidates"] == len(seen) == len(set(seen)) == 51 and found["rank"] == 1


@pytest.mark.parametrize(
    "canary, pattern", [("pin 12", "pin ###"), ("pin 12", "pin 12"), ("pin ab", "pin ##")]
)
def test_a_canary_of_another_form_is_refused(canary, pattern):
    with pytest.raises(InputError, match="does not have the form"):
        exposure_bits(None, None, canary, pattern)


def test_a_model_that_learned_a_secret_exposes_it(tiny_corpus):
    from datasets import Dataset

    torch.manual_seed(0)
    secret, text = "the code is 274", "the code is 0123456789"
    tokenizer = load_tokenizer("char", Dataset.from_dict({"text": [text]}))
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=32, n_layer=1, n_head=2)
    )
    before = exposure_bits(model, tokenizer, secret, "the code is ###", batch_size=128)
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(secret)["input_ids"]]])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(40):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = exposure_bits(model, tokenizer, secret, "the code is ###", batch_size=128)
    assert after["rank"] == 1 and after["exposure_bits"] == pytest.approx(np.log2(1000))
    assert before["exposure_bits"] < 8


def test_the_gap_is_that_of_token_means_and_its_interval_holds_it():
    generator = np.random.default_rng(1)
    tokens = generator.integers(10, 50, (2, 40))
    nll = tokens * (2 + generator.normal(0, 0.1, (2, 40)) + np.array([[0.0], [0.5]]))
    train, validation = (np.stack([n, t], 1) for n, t in zip(nll, tokens, strict=True))
    found = loss_gap(train, validation)
    assert found["gap"] == pytest.approx(
        nll[1].sum() / tokens[1].sum() - nll[0].sum() / tokens[0].sum()
    )
    assert found["gap_ci95"][0] < 0.5 < found["gap_ci95"][1] and found["gap_ci95"][0] > 0.3

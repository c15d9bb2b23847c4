"""Perplexity against hand-computed cases and an independent one-token-at-a-time implementation."""

import math
import re

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hfscale.metrics import perplexity
from hfscale.metrics.perplexity import (
    DocumentScores,
    perplexity_metrics,
    rolling_windows,
    score_documents,
)
from hfscale.process import InputError
from tests.tiny_models import MAMBA, tiny_model

TEXTS = [
    "the cat sat on the mat, and the dog sat on the log.",
    "a",
    "Größe is not a word of the log; 猫 is a cat.\n\nThe mat was red.",
    " ".join(f"the cat number {i} sat on mat {i * 7 % 13}." for i in range(6)),
    "dog dog dog",
]


@pytest.fixture(scope="module")
def tokenizer():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<|endoftext|>", "<|pad|>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|endoftext|>", pad_token="<|pad|>"
    )


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_layer=2,
            n_head=2,
            n_embd=32,
            n_positions=32,
            initializer_range=0.3,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def naive_nll(model, tokenizer, text, max_length, stride):
    """One token at a time, straight from the definition: which tokens may be seen depends on where
    a block of scored tokens ends.
    """
    ids = [tokenizer.eos_token_id] + tokenizer(text)["input_ids"]
    total = 0.0
    for target in range(1, len(ids)):
        blocks_after_first = math.ceil(max(0, target - max_length) / stride)
        block_end = min(max_length + blocks_after_first * stride, len(ids) - 1)
        first_seen = max(0, block_end - max_length)
        with torch.no_grad():
            logits = model.eval()(torch.tensor([ids[first_seen:target]])).logits[0, -1].double()
        total -= torch.log_softmax(logits, -1)[ids[target]].item()
    return total


@pytest.mark.parametrize(
    ("max_length", "stride"), [(32, 16), (32, 32), (32, 1), (8, 3), (5, 5), (1, 1), (2, 1)]
)
def test_equals_one_token_at_a_time(model, tokenizer, max_length, stride):
    scores = score_documents(
        model, tokenizer, TEXTS, max_length=max_length, stride=stride, batch_size=4
    )
    expected = [naive_nll(model, tokenizer, text, max_length, stride) for text in TEXTS]
    np.testing.assert_allclose(scores.sums[:, 0], expected, rtol=1e-5)
    metrics, _ = perplexity_metrics(scores)
    assert scores.sums[:, 1].tolist() == [len(tokenizer(text)["input_ids"]) for text in TEXTS]
    assert (
        metrics["bytes"]
        == sum(len(text.encode()) for text in TEXTS)
        > sum(len(text) for text in TEXTS)
    )
    assert metrics["words"] == sum(len(re.split(r"\s+", text)) for text in TEXTS)
    nll = sum(expected)
    assert metrics["perplexity"] == pytest.approx(math.exp(nll / metrics["tokens"]), rel=1e-5)
    assert metrics["bits_per_byte"] == pytest.approx(nll / math.log(2) / metrics["bytes"], rel=1e-5)
    assert metrics["word_perplexity"] == pytest.approx(math.exp(nll / metrics["words"]), rel=1e-5)


@pytest.mark.parametrize("num_ids", [0, 1, 2, 5, 8, 9, 10, 33])
@pytest.mark.parametrize(("max_length", "stride"), [(8, 8), (8, 4), (8, 1), (8, 7), (1, 1)])
def test_windows_score_every_target_once_and_fit(num_ids, max_length, stride):
    windows = rolling_windows(num_ids, max_length, stride)
    assert [i for _, first, stop in windows for i in range(first, stop)] == list(range(1, num_ids))
    for i, (start, first, stop) in enumerate(windows):
        assert 0 <= start < first < stop and stop - 1 - start <= max_length
        assert start == 0 or stop - 1 - start == max_length  # as much context as there is
        assert stop - first <= (stride if i else max_length)


def test_disjoint_windows_by_hand():
    # 10 ids p t0..t8, windows of 4: lm-eval reads [p t0 t1 t2], then one token of context and the
    # next 3 ...
    assert rolling_windows(10, 4, 4) == [(0, 1, 5), (4, 5, 9), (5, 9, 10)]


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_batch_size_does_not_matter(model, tokenizer, batch_size):
    one, other = (
        perplexity_metrics(
            score_documents(model, tokenizer, TEXTS, max_length=16, stride=5, batch_size=n)
        )[0]
        for n in (3, batch_size)
    )
    for name in ("perplexity", "bits_per_byte", "word_perplexity", "perplexity_ci95"):
        assert other[name] == pytest.approx(one[name], rel=1e-6)


def test_a_model_that_gives_all_logits(model, tokenizer):
    class Plain(GPT2LMHeadModel):
        def forward(self, input_ids, use_cache):
            return super().forward(input_ids=input_ids, use_cache=use_cache)

    plain = Plain(model.config)
    plain.load_state_dict(model.state_dict())
    expected = score_documents(model, tokenizer, TEXTS, max_length=8, stride=3).sums[:, 0]
    got = score_documents(plain, tokenizer, TEXTS, max_length=8, stride=3).sums[:, 0]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_model_that_states_no_limit_is_read_in_1024_tokens(tokenizer):
    free = tiny_model("mamba", MAMBA, len(tokenizer))
    scores = score_documents(free, tokenizer, ["some text"])
    assert (scores.max_length, scores.stride) == (1024, 512)
    assert score_documents(free, tokenizer, ["some text"], max_length=2000).max_length == 2000


def test_logits_are_taken_in_pieces(model, tokenizer, monkeypatch):
    whole = score_documents(model, tokenizer, TEXTS).sums[:, 0]
    monkeypatch.setattr(perplexity, "LOGITS_AT_ONCE", 3 * len(tokenizer))
    np.testing.assert_allclose(
        score_documents(model, tokenizer, TEXTS).sums[:, 0], whole, rtol=1e-7
    )


def test_uniform_model_by_hand(tokenizer):
    """All logits equal: every token costs ln V, whatever the text."""
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=512, n_layer=1, n_head=1, n_embd=8, n_positions=16)
    )
    model.lm_head.weight.data.zero_()
    text = "the cat"
    metrics, notes = perplexity_metrics(score_documents(model, tokenizer, [text]))
    tokens = len(tokenizer(text)["input_ids"])
    assert metrics["perplexity"] == pytest.approx(512, rel=1e-6)
    assert metrics["bits_per_byte"] == pytest.approx(
        tokens * 9 / 7, rel=1e-6
    )  # log2 512 = 9 bits a token, 7 bytes
    assert metrics["word_perplexity"] == pytest.approx(512 ** (tokens / 2), rel=1e-5)
    assert metrics["perplexity_ci95"] is None and "one item" in notes["perplexity_ci95"]


def test_aggregate_is_the_token_mean_and_interval_the_ratio_of_sums():
    scores = DocumentScores(np.array([[10.0, 10, 40, 8], [300.0, 100, 500, 90]]), 8, 4, "<eos>")
    metrics, _ = perplexity_metrics(scores)
    assert metrics["perplexity"] == pytest.approx(math.exp(310 / 110))
    assert metrics["documents"] == 2 and metrics["tokens"] == 110
    # Two documents: resamples are 1/4 first only, 1/4 second only, so the 2.5 % and 97.5 % points
    # are these two.
    assert metrics["perplexity_ci95"] == pytest.approx([math.exp(1), math.exp(3)])
    assert metrics["bits_per_byte_ci95"] == pytest.approx([0.25 / math.log(2), 0.6 / math.log(2)])


def test_overflow_is_null_with_a_reason():
    scores = DocumentScores(np.array([[2000.0, 600, 900, 1], [2100.0, 600, 900, 1]]), 8, 4, "<eos>")
    metrics, notes = perplexity_metrics(scores)
    assert metrics["word_perplexity"] is None and metrics["word_perplexity_ci95"] is None
    assert "float" in notes["word_perplexity"]
    assert metrics["perplexity"] == pytest.approx(math.exp(4100 / 1200))


def test_without_a_prefix_token_the_first_token_is_not_scored(model, tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    text = TEXTS[0]
    scores = score_documents(model, bare, [text, "a"])
    ids = tokenizer(text)["input_ids"]
    with torch.no_grad():
        loss = model.eval()(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
    assert scores.prefix_token is None
    assert scores.sums[:, 1].tolist() == [len(ids) - 1, 0]
    assert scores.sums[:, 0].tolist() == pytest.approx([loss * (len(ids) - 1), 0.0], rel=1e-5)
    metrics, notes = perplexity_metrics(scores)
    assert metrics["bits_per_byte"] is None and "first tokens" in notes["bits_per_byte"]


def test_unknown_tokens_are_counted_and_noted(model):
    letters = Tokenizer(
        models.WordLevel({"<eos>": 0, "<unk>": 1, "a": 2, "b": 3}, unk_token="<unk>")
    )
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    known = PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="<eos>", unk_token="<unk>")
    metrics, notes = perplexity_metrics(score_documents(model, known, ["abz", "bbbxy"]))
    assert metrics["unknown_tokens"] == 3 and "not scored" in notes["unknown_tokens"]
    metrics, notes = perplexity_metrics(score_documents(model, known, ["ab", "bbb"]))
    assert metrics["unknown_tokens"] == 0 and notes == {}


def test_model_is_left_as_found_and_dropout_is_off(model, tokenizer):
    expected = score_documents(model.eval(), tokenizer, TEXTS[:1]).sums[:, 0]
    assert (score_documents(model.train(), tokenizer, TEXTS[:1]).sums[:, 0] == expected).all()
    assert model.training


def test_bad_windows_are_refused(model, tokenizer):
    for bad in (
        {"max_length": 33},
        {"max_length": 0},
        {"stride": 0},
        {"max_length": 8, "stride": 9},
    ):
        with pytest.raises(InputError, match=f"{list(bad)[-1]}: got {list(bad.values())[-1]}"):
            score_documents(model, tokenizer, TEXTS, **bad)


def test_ids_outside_the_vocabulary_are_refused(tokenizer):
    small = GPT2LMHeadModel(
        GPT2Config(vocab_size=100, n_layer=1, n_head=1, n_embd=8, n_positions=16)
    )
    with pytest.raises(InputError, match=rf"{len(tokenizer)} tokens.*vocabulary of 100"):
        score_documents(small, tokenizer, TEXTS)


def test_text_without_tokens_is_refused(model, tokenizer):
    with pytest.raises(InputError, match="no token to score"):
        score_documents(model, tokenizer, ["", ""])


def test_non_finite_logits_name_the_document(model, tokenizer):
    broken = GPT2LMHeadModel(model.config)
    only_in_2 = set(tokenizer(TEXTS[2])["input_ids"]) - {
        i for t in TEXTS[:2] for i in tokenizer(t)["input_ids"]
    }
    broken.lm_head.weight = torch.nn.Parameter(
        torch.ones_like(broken.lm_head.weight)
    )  # no longer tied to wte
    broken.transformer.wte.weight.data[min(only_in_2)] = float("nan")
    assert np.isfinite(score_documents(broken, tokenizer, TEXTS[:2]).sums[:, 0]).all()
    with pytest.raises(FloatingPointError, match="document 2"):
        score_documents(broken, tokenizer, TEXTS)


@pytest.mark.parametrize("packing", ["wrapped", "bfd_split"])
def test_packed_rows_give_the_same_log_likelihoods(model, tokenizer, packing):
    """Several documents in a row, apart from each other: each text's sum, less the EOS that only a
    row predicts.
    """
    from datasets import Dataset

    from hfscale.data.packing import collate_rows, pack_documents

    texts = [
        TEXTS[1],
        TEXTS[4],
        "the cat",
        "the dog sat",
        "a log",
    ]  # none is cut: several fit into a row of 32
    rows = pack_documents(Dataset.from_dict({"text": texts}), tokenizer, 32, packing=packing)
    batch = collate_rows(list(rows))
    with torch.no_grad():
        logits = model.eval()(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits
    targets = batch["labels"][:, 1:].masked_fill(
        batch["labels"][:, 1:] == tokenizer.eos_token_id, -100
    )
    nll = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), targets.flatten(), reduction="sum"
    ).item()
    scores = score_documents(model, tokenizer, texts)
    assert (targets != -100).sum().item() == scores.sums[:, 1].sum()
    assert nll == pytest.approx(scores.sums[:, 0].sum(), rel=1e-6)

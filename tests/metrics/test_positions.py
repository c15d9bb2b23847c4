"""Perplexity by position against one document at a time."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from hfscale.data.packing import pack_documents
from hfscale.data.tokenizer import train_bpe
from hfscale.metrics.positions import perplexity_by_position, position_edges, sums_by_position

TEXTS = [f"text {i} " + " ".join(str(i * k) for k in range(1, 4 + 5 * (i % 4))) for i in range(12)]


def tiny_llama(vocab_size, context=64):
    set_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=context,
        initializer_range=0.5,
    )
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    ("context", "longest", "edges"),
    [
        (64, 256, [1, 16, 32, 48, 64, 96, 128, 192, 256]),
        (64, 100, [1, 16, 32, 48, 64, 96, 100]),
        (2, 3, [1, 2, 3]),
    ],
)
def test_ranges_of_positions(context, longest, edges):
    assert position_edges(context, longest) == edges


@pytest.mark.parametrize("packing", ["wrapped", "bfd_split", "none"])
def test_sums_are_those_of_documents_alone(packing):
    documents = Dataset.from_dict({"text": TEXTS})
    tokenizer = train_bpe(documents, 300)
    model = tiny_llama(len(tokenizer))
    ids_of_texts = tokenizer(TEXTS)["input_ids"]
    room = sum(len(ids) + 2 for ids in ids_of_texts)  # no document is cut
    rows = pack_documents(documents, tokenizer, room, packing=packing)
    edges = [1, 4, 9, room]
    sums = sums_by_position(model, rows, edges, batch_size=2).sum(axis=0)
    expected = np.zeros((3, 2))
    eos = tokenizer.eos_token_id
    for ids in ids_of_texts:
        whole = torch.tensor([[eos, *ids, eos]])
        with torch.no_grad():
            logits = model(input_ids=whole).logits[0, :-1]
        nll = torch.nn.functional.cross_entropy(logits, whole[0, 1:], reduction="none")
        for tokens_before, value in enumerate(nll.tolist(), 1):
            expected[np.digitize(tokens_before, edges) - 1] += value, 1
    np.testing.assert_allclose(sums, expected, rtol=1e-5)
    ranges = perplexity_by_position(model, rows, [*edges, room + 9], batch_size=3)
    assert [one["first_position"] for one in ranges] == [1, 4, 9]
    assert [one["last_position"] for one in ranges] == [3, 8, room - 1]
    assert [one["tokens"] for one in ranges] == expected[:, 1].tolist()
    perplexities = [one["perplexity"] for one in ranges]
    np.testing.assert_allclose(perplexities, np.exp(expected[:, 0] / expected[:, 1]), rtol=1e-5)

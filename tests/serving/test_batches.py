"""Rows that join and leave at any step have the logits that each has alone, for every kind of
model.
"""

import random

import pytest
import torch

from hfscale.serving.batches import SeparateRows, SharedBatch, batch_for, read_alone
from tests.tiny_models import APART, CONTEXT, TOGETHER, VOCAB_SIZE, tiny_model

ONE_BY_ONE = {"mamba", "falcon_mamba", "mamba2", "jamba", "rwkv"}  # they carry a state


@pytest.mark.parametrize("kind", [*APART, *TOGETHER])
def test_rows_come_and_go(kind):
    fields = {**APART, **TOGETHER}[kind]
    model = tiny_model(kind, fields, VOCAB_SIZE)
    batch = batch_for(model)
    assert isinstance(batch, SharedBatch | SeparateRows)
    if kind in APART and kind not in ONE_BY_ONE:
        assert isinstance(batch, SharedBatch)
    if kind in ONE_BY_ONE:
        assert isinstance(batch, SeparateRows)

    draw = random.Random(0)
    rows: list[list[int]] = []
    logits = torch.zeros(0, VOCAB_SIZE)
    for step in range(8):
        if step in (0, 2, 5):
            new = [draw.choices(range(VOCAB_SIZE), k=draw.randint(1, 12)) for _ in range(2)]
            logits = batch.join(new)
            check(model, new, logits)
            rows += new
        tokens = draw.choices(range(VOCAB_SIZE), k=len(rows))
        for row, token in zip(rows, tokens, strict=True):
            row.append(token)
        check(model, rows, batch.step(tokens))
        if step in (3, 4):
            places = [place for place in range(len(rows)) if place != step - 3]
            batch.keep(places)
            rows = [rows[place] for place in places]
    batch.keep([])
    check(model, rows[:1], batch.join(rows[:1]))


@torch.inference_mode()
def check(model, rows, logits):
    expected = torch.stack([read_alone(model, row) for row in rows])
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3 * expected.std().item())


def test_the_cache_is_as_long_as_its_longest_row():
    model = tiny_model("gpt2", APART["gpt2"], VOCAB_SIZE)
    batch = SharedBatch(model)
    batch.join([[5] * 40])
    batch.join([[6] * 3])
    for _ in range(CONTEXT - 41):
        batch.step([1, 2])
    batch.keep([1])
    assert batch._cache.get_seq_length() == 3 + CONTEXT - 41
    batch.keep([])
    assert batch._cache is None

"""What models of many kinds do: whether packed documents see each other, and whether a place sees
later tokens."""

import pytest
import torch
from datasets import Dataset

from hfscale.behaviour import forward_takes, is_causal, logits_equal
from hfscale.data.packing import IGNORED, collate_rows, pack_documents, settle_packing
from hfscale.models import load_model
from hfscale.process import InputError
from tests.tiny_models import (
    APART,
    FILLING,
    LLAMA,
    OPT,
    TOGETHER,
    VOCAB_SIZE,
    save_tiny_model,
    tiny_model,
    tiny_tokenizer,
)

TEXTS = [
    "the cat sat",
    "a log and a mat",
    "on the mat",
    "more words than the others have, and some more",
    "log",
]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def summed_nll(model, inputs: dict, labels: torch.Tensor) -> float:
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    ).item()


def nll_alone(model, tokenizer) -> float:
    eos, total = tokenizer.eos_token_id, 0.0
    for text in TEXTS:
        ids = torch.tensor([[eos, *tokenizer.encode(text), eos]])
        total += summed_nll(model, {"input_ids": ids}, ids)
    return total


def nll_in_rows(model, tokenizer, packing: str) -> float:
    rows = pack_documents(Dataset.from_dict({"text": TEXTS}), tokenizer, 60, packing=packing)
    batch = collate_rows(list(rows))
    inputs = {
        name: ids for name, ids in batch.items() if name != "labels" and forward_takes(model, name)
    }
    return summed_nll(model, inputs, batch["labels"])


@pytest.mark.parametrize("kind", APART)
def test_models_that_keep_packed_documents_apart(kind, tokenizer, capsys):
    model = tiny_model(kind, APART[kind], VOCAB_SIZE)
    for packing in ("wrapped", "bfd_split"):
        assert settle_packing(model, packing, default="none") == packing
        assert settle_packing(model, None, default=packing) == packing
    assert capsys.readouterr().err == ""
    alone = nll_alone(model, tokenizer)
    for packing in ("bfd_split", "none"):
        assert nll_in_rows(model, tokenizer, packing) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("kind", TOGETHER)
def test_models_that_do_not_get_a_row_for_each_document(kind, tokenizer, capsys):
    model = tiny_model(kind, TOGETHER[kind], VOCAB_SIZE)
    assert settle_packing(model, None, default="wrapped") == "none"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(
        f"packing: {type(model).__name__} lets documents"
    )
    for packing in ("wrapped", "bfd_split"):
        with pytest.raises(InputError, match=f"^packing {packing}: .* use --packing none") as error:
            settle_packing(model, packing, default="wrapped")
        assert "\n" not in str(error.value)
        assert (
            settle_packing(model, packing, default="none", cross_document_attention=True) == packing
        )
    assert settle_packing(model, "none", default="wrapped") == "none"
    alone = nll_alone(model, tokenizer)
    assert nll_in_rows(model, tokenizer, "none") == pytest.approx(alone, rel=1e-5)
    assert abs(nll_in_rows(model, tokenizer, "bfd_split") / alone - 1) > 1e-3


@pytest.mark.parametrize("kind", FILLING)
def test_models_that_see_the_token_they_predict_are_no_language_models(kind, tmp_path):
    model = tiny_model(kind, FILLING[kind], VOCAB_SIZE)
    assert not is_causal(model, 20)
    folder = save_tiny_model(kind, FILLING[kind], tmp_path / kind)
    with pytest.raises(
        InputError, match=f"^model .*: {type(model).__name__} sees later tokens"
    ) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)


def test_trying_leaves_model_and_random_state_as_they_were():
    model = tiny_model("opt", OPT | {"dropout": 0.5}, VOCAB_SIZE).train()
    state = torch.get_rng_state()
    assert is_causal(model, 20)  # without dropout
    assert settle_packing(model, None, default="wrapped") == "none"
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert not any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_no_difference_and_another_token_is_one(dtype):
    model = tiny_model("llama", LLAMA, VOCAB_SIZE).to(dtype)
    assert is_causal(model, 20)
    bert = tiny_model("bert", FILLING["bert"], VOCAB_SIZE).to(dtype)
    assert not is_causal(bert, 20)


def test_logits_that_are_no_numbers_tell_nothing():
    nothing = torch.full((3, 4), float("nan"))
    assert logits_equal(nothing, torch.ones(3, 4))  # what uses them says so

"""Maps, ablation and logit lens of models that are no GPT-2, against their own weights."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hfscale.probes import attention
from hfscale.probes.attention_layers import attention_layers, blocks_of
from hfscale.process import InputError
from tests.tiny_models import APART, LLAMA, MAMBA, TOGETHER, eager_model

EXPERTS = {
    **LLAMA,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
# Also: fused matrices, a matrix outside of the attention, lists instead of tuples, no norm at the
# end, scores or logits that are squeezed, layers without attention.
KINDS = {
    "gpt2": APART["gpt2"],
    "llama": LLAMA,
    "qwen3": LLAMA,
    "olmo2": LLAMA,
    "smollm3": LLAMA,
    "nanochat": LLAMA,
    "qwen3_moe": EXPERTS,
    "gemma2": LLAMA,
    "gpt_neox": APART["gpt_neox"],
    "opt": TOGETHER["opt"],
    "bloom": TOGETHER["bloom"],
    "roberta": TOGETHER["roberta"],
    "openai-gpt": TOGETHER["openai-gpt"],
    "jamba": TOGETHER["jamba"],
    # returns states of its other layers as attention
    "minimax": {**LLAMA, "layer_types": ["linear_attention", "full_attention"]},
}
# What upstream calls the matrix that mixes the heads.
MATRICES = {
    "gpt2": "transformer.h.1.attn.c_proj",
    "llama": "model.layers.1.self_attn.o_proj",
    "nanochat": "model.layers.1.self_attn.o_proj",
    "gpt_neox": "gpt_neox.layers.1.attention.dense",
    "opt": "model.decoder.layers.1.self_attn.out_proj",
    "bloom": "transformer.h.1.self_attention.dense",
    "roberta": "roberta.encoder.layer.1.attention.output.dense",
    "openai-gpt": "transformer.h.1.attn.c_proj",
    "minimax": "model.layers.1.self_attn.o_proj",
}
IDS = torch.tensor([[0, 30, 50, 70, 30, 90, 200, 201, 202]])


def loss_of(model: nn.Module) -> float:
    with torch.no_grad():
        logits = model(IDS, use_cache=False).logits[0, :-1]
    return cross_entropy(logits, IDS[0, 1:]).item()


@pytest.mark.parametrize("kind", KINDS)
def test_any_model_that_attends(kind):
    """The weights are the model's own; ablation is what the model gives without what the output
    matrix makes of a head; the lens is the model without its later blocks.
    """
    model = eager_model(kind, KINDS[kind])
    layers = attention_layers(model)
    with torch.no_grad():
        maps = model(IDS, output_attentions=True, use_cache=False).attentions
    maps = [part for part in maps if part.shape == (1, 4, 9, 9)]
    weights = attention.attention_weights(model, IDS)
    assert torch.equal(weights, torch.stack(maps, dim=1))
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-5, rtol=0)

    loss, effects = attention.ablate_heads(model, IDS)
    assert loss == pytest.approx(loss_of(model), abs=1e-5)
    assert effects.shape == (len(layers), 4) and effects.abs().min() > 1e-5
    for layer, head in np.ndindex(*effects.shape):
        assert loss + effects[layer, head].item() == pytest.approx(
            loss_without(model, layer, head), abs=1e-5
        )

    lens = attention.logit_lens(model, IDS, top_k=5)
    assert lens["loss"][-1].item() == pytest.approx(loss, abs=1e-5)
    assert [a != pytest.approx(b, abs=1e-4) for a, b in pairwise(lens["loss"].tolist())] == [
        True
    ] * 2
    for depth in range(2):
        cut = without_later_blocks(model, depth)
        assert lens["loss"][depth].item() == pytest.approx(loss_of(cut), abs=1e-5)


@pytest.mark.parametrize("kind", MATRICES)
def test_the_matrix_that_mixes_the_heads(kind):
    model = eager_model(kind, KINDS[kind])
    assert attention_layers(model)[-1].output_matrix is model.get_submodule(MATRICES[kind])


def loss_without(model: nn.Module, layer: int, head: int) -> float:
    """The loss if the output matrix has zeros where it reads a head."""
    other = copy.deepcopy(model)
    matrix = attention_layers(other)[layer].output_matrix
    weight = matrix.weight.data
    reads = weight if type(matrix).__name__ == "Conv1D" else weight.T  # (heads x width, width)
    width = len(reads) // 4
    reads[head * width : (head + 1) * width] = 0
    return loss_of(other)


def without_later_blocks(model: nn.Module, depth: int) -> nn.Module:
    """The model whose blocks from `depth` on give back what they are given."""
    other = copy.deepcopy(model)
    for block in blocks_of(other, attention_layers(other))[depth:]:
        block.register_forward_hook(give_back, with_kwargs=True)
    return other


def give_back(block, inputs, named_inputs, output):
    given = inputs[0] if inputs else named_inputs["hidden_states"]
    return given if isinstance(output, torch.Tensor) else (given, *output[1:])


@pytest.mark.parametrize("kind", ["mamba", "rwkv"])
def test_a_model_without_attention_is_refused(kind):
    model = eager_model(kind, {"mamba": MAMBA, "rwkv": TOGETHER["rwkv"]}[kind])
    with pytest.raises(InputError, match="^model: .*ForCausalLM returns no attention weights") as e:
        attention_layers(model)
    assert "\n" not in str(e.value)


def test_small_batches_give_the_same(monkeypatch):
    model = eager_model("llama", LLAMA)
    whole = attention.ablate_heads(model, IDS)[1], attention.logit_lens(model, IDS)["loss"]
    monkeypatch.setattr(attention, "TOKENS_AT_ONCE", 1)
    one_by_one = attention.ablate_heads(model, IDS)[1], attention.logit_lens(model, IDS)["loss"]
    for a, b in zip(whole, one_by_one, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)

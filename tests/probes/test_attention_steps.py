"""One head step by step, against what the model computed and against the papers' formulas."""

import math

import pytest
import torch

from hfscale.probes import attention_page
from hfscale.probes.attention import attention_weights
from hfscale.probes.attention_steps import explain_head
from hfscale.process import InputError
from tests.probes.test_attention_layers import EXPERTS
from tests.tiny_models import APART, BERT, GPT2, LLAMA, OPT, TOGETHER, eager_model

IDS = torch.tensor([[0, 30, 50, 70, 30, 90, 200, 201, 202, 17, 18, 19]])
TOKENS = IDS.shape[1]
POSITIONS = torch.arange(TOKENS, dtype=torch.float64)
SEPARATE = ["X", "Q", "K", "V"]
ROTATED = ["angle", "Q'", "K'"]
NORMED_FIRST = ["Q'", "K'", "angle", "Q''", "K''"]
ROTATED_FIRST = ["angle", "Q'", "K'", "Q''", "K''"]
# What happens to queries and keys, and how the scores are made of them.
KINDS = {
    "gpt2": (GPT2, [], "Q K^T / sqrt(8)"),
    "llama": (LLAMA, ROTATED, "Q' K'^T / sqrt(8)"),
    "qwen3": (LLAMA, NORMED_FIRST, "Q'' K''^T / sqrt(8)"),
    "olmo2": (LLAMA, NORMED_FIRST, "Q'' K''^T / sqrt(8)"),
    "smollm3": ({**LLAMA, "no_rope_layers": [1, 0]}, ROTATED, "Q' K'^T / sqrt(8)"),
    "nanochat": (LLAMA, ROTATED_FIRST, "Q'' K''^T / sqrt(8)"),
    "lfm2": (LLAMA, NORMED_FIRST, "Q'' K''^T / sqrt(8)"),
    "hunyuan_v1_dense": (LLAMA, ROTATED_FIRST, "Q'' K''^T / sqrt(8)"),
    "qwen3_moe": (EXPERTS, NORMED_FIRST, "Q'' K''^T / sqrt(8)"),
    "mistral": ({**LLAMA, "sliding_window": 4}, ROTATED, "Q' K'^T / sqrt(8)"),
    "gemma": (LLAMA, ROTATED, "Q' K'^T / sqrt(8)"),
    "gemma2": ({**LLAMA, "attn_logit_softcapping": 3.0}, ROTATED, "Q' K'^T / 16"),
    "phi": (LLAMA, ROTATED, "Q' K'^T / sqrt(8)"),
    "phi3": (LLAMA, ROTATED, "Q' K'^T / sqrt(8)"),
    "glm4": (LLAMA, ROTATED, "Q' K'^T / sqrt(8)"),
    "gpt_neox": (BERT, ROTATED, "Q' K'^T / sqrt(8)"),
    "gpt_bigcode": (APART["gpt_bigcode"], [], "Q K^T / sqrt(8)"),
    "opt": (OPT, [], "Q K^T / sqrt(8)"),
}


def values_of(explained) -> dict[str, torch.Tensor]:
    return {
        step["name"]: torch.tensor(step["values"], dtype=torch.float64)
        for step in explained["steps"]
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_steps_give_what_the_model_computed(kind):
    fields, changes, formula = KINDS[kind]
    model = eager_model(kind, fields)
    maps = attention_weights(model, IDS)[0].double()
    for head in (0, 3):
        explained = explain_head(model, IDS, 0, head)
        values = values_of(explained)
        assert explained["equal"] and max(explained["difference"].values()) < 1e-5
        assert [*SEPARATE, *changes] == list(values)[: 4 + len(changes)]
        assert next(s["formula"] for s in explained["steps"] if s["name"] == "S") == formula
        torch.testing.assert_close(values["A"], maps[0, head], atol=1e-6, rtol=0)
        last = "'" * (changes.count("Q'") + changes.count("Q''"))
        scores = values[f"Q{last}"] @ values[f"K{last}"].T / explained["divisor"]
        torch.testing.assert_close(values["S"], scores)
        torch.testing.assert_close(values["Z"], values["A"] @ values["V"])
        torch.testing.assert_close(values["C"][:, 8 * head : 8 * head + 8], values["Z"])
        assert explained["kv_head"] == head * explained["kv_heads"] // 4


def test_key_value_heads_are_shared():
    """Heads 0 and 1 have the keys and values of one, 2 and 3 of the other."""
    model = eager_model("llama", LLAMA)
    explained = [explain_head(model, IDS, 1, head) for head in range(4)]
    keys, values = (
        [torch.tensor(e["steps"][place]["values"]) for e in explained] for place in (2, 3)
    )
    for vectors in (keys, values):
        assert torch.equal(vectors[0], vectors[1]) and torch.equal(vectors[2], vectors[3])
        assert not torch.equal(vectors[1], vectors[2])
    assert explained[1]["remarks"] == ["Heads 0 to 1 share key/value head 0 of 2."]
    assert explain_head(eager_model("gpt2", GPT2), IDS, 1, 0)["remarks"] == []


@pytest.mark.parametrize(
    ("kind", "direction", "width"), [("llama", 1, 8), ("nanochat", -1, 8), ("phi", 1, 4)]
)
def test_each_pair_is_turned_by_position_times_its_frequency(kind, direction, width):
    """Su et al. 2021: pair i of position p turns by p / theta^(2 i / d), as complex numbers do."""
    values = values_of(explain_head(eager_model(kind, LLAMA), IDS, 1, 2))
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = direction * POSITIONS[:, None] * frequencies
    torch.testing.assert_close(values["angle"], angles, atol=1e-5, rtol=0)
    half = width // 2
    for name in "QK":
        before, after = values[name], values[f"{name}'"]
        numbers = torch.complex(before[:, :half], before[:, half:width]) * torch.exp(1j * angles)
        torch.testing.assert_close(after[:, :half], numbers.real, atol=1e-5, rtol=0)
        torch.testing.assert_close(after[:, half:width], numbers.imag, atol=1e-5, rtol=0)
        assert torch.equal(after[:, width:], before[:, width:])


def test_neighbours_are_pairs_in_some_models():
    explained = explain_head(eager_model("glm4", KINDS["glm4"][0]), IDS, 0, 0)
    angle = next(step for step in explained["steps"] if step["name"] == "angle")
    assert angle["columns"] == ["0, 1", "2, 3"] and "the last 4 numbers stay" in angle["note"]


def test_a_scaled_rotation_tells_by_how_much_vectors_grow():
    yarn = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "rope_theta": 10000.0,
    }
    explained = explain_head(eager_model("llama", {**LLAMA, "rope_parameters": yarn}), IDS, 0, 0)
    values = values_of(explained)
    growth = 0.1 * math.log(4) + 1  # Peng et al. 2023, equation 15
    torch.testing.assert_close(values["Q'"].norm(dim=1), growth * values["Q"].norm(dim=1))
    note = next(step["note"] for step in explained["steps"] if step["name"] == "Q'")
    assert explained["equal"] and f"and grown by {growth:.4g} is" in note


@pytest.mark.parametrize(("kind", "together"), [("qwen3", False), ("olmo2", True)])
def test_norms_of_queries_and_keys(kind, together):
    model = eager_model(kind, LLAMA)
    module = model.model.layers[1].self_attn
    with torch.no_grad():
        for norm in (module.q_norm, module.k_norm):
            norm.weight.copy_(torch.linspace(0.5, 2, len(norm.weight)))
    explained = [explain_head(model, IDS, 1, head) for head in range(4)]
    queries = torch.stack([values_of(e)["Q"] for e in explained], dim=1)  # (tokens, heads, d_k)
    divided = queries.square().mean(dim=(1, 2) if together else 2, keepdim=True)
    factors = module.q_norm.weight.detach().double()
    factors = factors.view(4, 8) if together else factors
    expected = queries / (divided + module.q_norm.variance_epsilon).sqrt() * factors
    for head in range(4):
        assert explained[head]["equal"]
        torch.testing.assert_close(values_of(explained[head])["Q'"], expected[:, head])
    note = explained[0]["steps"][4]["note"]
    assert f"divided by {divided[-1, 0].sqrt().item():.4f}" in note and "g begins 0.5000" in note


def test_a_layer_without_rotation_says_so():
    model = eager_model("smollm3", KINDS["smollm3"][0])
    explained = explain_head(model, IDS, 1, 0)
    assert "angle" not in values_of(explained) and explained["equal"]
    assert "This layer does not rotate" in explained["remarks"][-1]
    assert len(explain_head(model, IDS, 0, 0)["remarks"]) == 1


def test_a_sliding_window_is_in_the_mask():
    model = eager_model("mistral", KINDS["mistral"][0])
    explained = explain_head(model, IDS, 0, 0)
    masked = next(step for step in explained["steps"] if step["name"] == "M")
    assert masked["formula"].endswith("would see a later one, or one 4 or more before it")
    distance = POSITIONS[:, None] - POSITIONS
    expected = (distance < 0) | (distance >= 4)
    assert torch.equal(values_of(explained)["M"].isinf(), expected)


def test_capped_scores():
    explained = explain_head(eager_model("gemma2", KINDS["gemma2"][0]), IDS, 0, 0)
    values = values_of(explained)
    torch.testing.assert_close(values["S'"], 3 * (values["S"] / 3).tanh())
    assert values["S"].abs().max() > 2 and explained["equal"]


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
        {"reorder_and_upcast_attn": True},
    ],
)
def test_what_the_scores_of_gpt2_are_divided_by(flags):
    model = eager_model("gpt2", GPT2 | flags)
    for layer in (0, 1):
        explained = explain_head(model, IDS, layer, 1)
        divisor = 1.0 if flags.get("scale_attn_weights") is False else math.sqrt(8)
        divisor *= layer + 1 if "scale_attn_by_inverse_layer_idx" in flags else 1
        assert explained["equal"] and explained["divisor"] == pytest.approx(divisor, rel=1e-12)
        values = values_of(explained)
        assert values["M"].isinf().sum() == TOKENS * (TOKENS - 1) / 2
        assert values["O"].shape == (TOKENS, 32)


def test_layers_that_do_not_attend_are_not_counted():
    model = eager_model("jamba", TOGETHER["jamba"])
    assert explain_head(model, IDS, 0, 1)["equal"]
    says = r"^explain 1 1: expected a layer from 0 to 0 \(of 2, those that attend are counted\) and"
    with pytest.raises(InputError, match=says):
        explain_head(model, IDS, 1, 1)


# ---- what the steps do not know


def test_a_difference_is_reported_as_one():
    """The steps are compared with what the model really computed: an attention that does something
    else shows, and where it is no rounding there is no explanation.
    """
    model = eager_model("llama", LLAMA)
    for added in (1e-4, 0.1):
        handle = model.model.layers[1].self_attn.register_forward_hook(
            lambda m, i, out, added=added: (out[0] + added, out[1]), prepend=True
        )
        try:
            if added < 0.01:
                explained = explain_head(model, IDS, 1, 0)
                assert not explained["equal"]
                assert explained["difference"]["output"] == pytest.approx(added, rel=0.1)
                assert "DIFFER" in attention_page.conclusion(explained)
            else:
                with pytest.raises(InputError, match="O, what the .* gives, differs by 0.1 from"):
                    explain_head(model, IDS, 1, 0)
        finally:
            handle.remove()


def test_rounding_of_large_numbers_is_no_difference():
    """The model computes in float32, which has seven digits."""
    model = eager_model("llama", LLAMA)
    model.model.layers[0].self_attn.o_proj.weight.data *= 1000
    explained = explain_head(model, IDS, 0, 0)
    assert explained["equal"] and explained["difference"]["output"] > 1e-4


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("bloom", "BloomAttention does something that the steps do not know: A, the weights,"),
        ("mpt", "MptAttention has the matrices Wqkv, out_proj; the steps know queries, keys"),
        ("gpt_oss", "GptOssAttention does something that the steps do not know: The size"),
        ("gptj", "GPTJAttention does something that the steps do not know: A, the weights,"),
    ],
)
def test_what_the_steps_do_not_know_is_one_line(kind, says):
    model = eager_model(kind, (TOGETHER | APART)[kind])
    with pytest.raises(InputError, match=f"^explain 0 1: {says}.*; leave --explain out") as error:
        explain_head(model, IDS, 0, 1)
    assert "\n" not in str(error.value)


def test_another_norm_is_one_line():
    model = eager_model("cohere", {**LLAMA, "use_qk_norm": True})
    with pytest.raises(InputError, match="^explain 0 1: .*leave --explain out"):
        explain_head(model, IDS, 0, 1)

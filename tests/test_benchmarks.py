"""The benchmarks' arithmetic: turns, intervals, verdicts, and a program that waits for its turn."""

import inspect
import json
import math
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"
STEPS = """
import sys
sys.path.insert(0, {benchmarks!r})
from measure import Turns

turns = Turns()
for number in range(10):
    print("step", number)
    turns.step()
raise SystemExit("no step is left")
"""


@pytest.fixture
def measure(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import measure

    return measure


def test_every_benchmark_can_be_asked_for(measure):
    import run_all

    for benchmark in run_all.BENCHMARKS.values():
        inspect.signature(benchmark).bind(Path(), True, rounds=1)


def test_every_second_round_goes_backwards(measure):
    order = []

    def side(name):
        return lambda: order.append(name) or measure.Cost(1.0, 1.0)

    rounds = measure.take_turns({name: side(name) for name in "AB"}, 3)
    assert "".join(order) == "ABBAAB"
    assert [set(costs) for costs in rounds] == [{"A", "B"}] * 3


def test_a_ratio_is_taken_within_each_round(measure):
    """The second round ran at a third of the speed, for both sides."""
    rounds = [
        {"ours": measure.Cost(2.0, 8.0), "theirs": measure.Cost(1.0, 2.0)},
        {"ours": measure.Cost(6.0, 24.0), "theirs": measure.Cost(3.0, 6.0)},
    ] * 3
    row = measure.compare("ours / theirs", "ours", "theirs", rounds)
    assert tuple(row.value) == pytest.approx((2.0, 2.0, 2.0))
    assert tuple(row.wall) == pytest.approx((4.0, 4.0, 4.0))
    assert row.rounds == 6


def test_the_interval_is_that_of_the_geometric_mean(measure):
    ratios = [0.5, 2.0] * 50
    value, low, high = measure.geometric_mean(ratios)
    assert value == pytest.approx(1.0)
    # Normal approximation: the logarithms scatter by log 2 around 0.
    half = 1.96 * math.log(2) / math.sqrt(len(ratios))
    assert math.log(low) == pytest.approx(-half, rel=0.1)
    assert math.log(high) == pytest.approx(half, rel=0.1)
    assert measure.geometric_mean(ratios) == (value, low, high)  # seeded
    assert measure.geometric_mean(ratios[:4]) == (pytest.approx(1.0), 0.0, math.inf)


@pytest.mark.parametrize(
    "bounds, limit, verdict",
    [
        ((1.0, 1.04), {"at_most": 1.05}, "within"),
        ((1.06, 1.08), {"at_most": 1.05}, "above"),
        ((1.04, 1.06), {"at_most": 1.05}, "not decided: more rounds"),
        ((0.0, math.inf), {"at_most": 1.05}, "not decided: more rounds"),
        ((0.96, 0.99), {"at_least": 0.95}, "within"),
        ((0.93, 0.94), {"at_least": 0.95}, "below"),
        ((0.94, 0.96), {"at_least": 0.95}, "not decided: more rounds"),
        ((1.0, 1.04), {}, ""),
    ],
)
def test_a_verdict_needs_the_whole_interval(measure, bounds, limit, verdict):
    low, high = bounds
    row = measure.Row("a / b", measure.Estimate(1.0, low, high), 9)
    [limited] = measure.with_limits([row], {"a / b": limit})
    assert limited.verdict() == verdict


def test_what_is_not_measured_says_why(measure, tmp_path):
    rows = [
        measure.not_measured("a / b", "no network\nat all"),
        measure.once("b", 2.0, "MiB"),
        measure.exactly("c", 3.0),
    ]
    shown = measure.table(rows).splitlines()
    assert shown[1].startswith("a / b ") and shown[1].endswith("not measured: no network at all")
    measure.write_json(rows, tmp_path / "new" / "rows.json", 1.0)
    written = json.loads((tmp_path / "new" / "rows.json").read_text())["rows"]
    assert [row["verdict"] for row in written] == ["not measured", "", ""]
    assert written[1]["value"] == {"value": 2.0, "low": 0.0, "high": None}


def test_every_limit_is_of_a_row_that_is_measured():
    """A row's name that changed would lose its limit without a word."""
    limits = json.loads((BENCHMARKS / "limits.json").read_text())
    sources = "\n".join(path.read_text() for path in BENCHMARKS.glob("*.py"))
    for name in limits:
        words = [word.strip(":%,") for word in name.split() if word not in ("/", "of")]
        missing = [word for word in words if word not in sources]
        assert not missing, name


def test_a_side_works_only_when_it_is_asked(measure, tmp_path):
    program = STEPS.format(benchmarks=str(BENCHMARKS))
    side = measure.Side([sys.executable, "-c", program], tmp_path, "a side")
    log = tmp_path / "a side.log"
    assert side.run(2).cpu >= 0
    assert log.read_text().count("step") <= 4  # what it prints is not an answer
    assert side.run(3).wall > 0
    with pytest.raises(RuntimeError, match="exit status 1: no step is left"):
        side.run(50)
    side.end()


def test_a_side_ends_when_it_is_let_go(measure, tmp_path):
    program = STEPS.format(benchmarks=str(BENCHMARKS))
    side = measure.Side([sys.executable, "-c", program], tmp_path, "a side")
    side.run(1)
    side.end()
    assert side.process.returncode == 0


def test_a_program_that_fails_is_no_measurement(measure, tmp_path):
    with pytest.raises(RuntimeError, match="a word"):
        measure.cost_of_program([sys.executable, "-c", "raise SystemExit('a word')"], tmp_path)
    program = "import time; start = time.process_time()\nwhile time.process_time() < start + 0.2: 1"
    assert measure.cost_of_program([sys.executable, "-c", program], tmp_path).cpu >= 0.2


def test_the_lean_gpt_is_gpt2(monkeypatch):
    """The same weights give the same logits as transformers' GPT-2."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import torch
    from lean_gpt import LeanGPT
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 8}
    lean = LeanGPT(11, **sizes)
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=11, activation_function="gelu_pytorch_tanh", **sizes)
    ).eval()
    names = {
        "attn.weight": "attn.c_attn.weight",
        "attn.bias": "attn.c_attn.bias",
        "attn_out.weight": "attn.c_proj.weight",
        "attn_out.bias": "attn.c_proj.bias",
        "mlp.weight": "mlp.c_fc.weight",
        "mlp.bias": "mlp.c_fc.bias",
        "mlp_out.weight": "mlp.c_proj.weight",
        "mlp_out.bias": "mlp.c_proj.bias",
    }
    theirs = dict(gpt2.transformer.named_parameters())
    with torch.no_grad():
        for name, parameter in lean.named_parameters():
            part, _, rest = name.partition(".")
            if part == "blocks":
                number, _, inner = rest.partition(".")
                value = theirs[f"h.{number}.{names.get(inner, inner)}"]
            else:
                outer = {"tokens": "wte", "positions": "wpe", "norm": "ln_f"}[part]
                value = theirs[f"{outer}.{rest}"]
            is_transposed = name.endswith(
                ("attn.weight", "attn_out.weight", "mlp.weight", "mlp_out.weight")
            )
            parameter.copy_(value.T if is_transposed else value)
    ids = torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(lean(ids), gpt2(ids).logits, atol=1e-6, rtol=1e-5)
    assert sum(p.numel() for p in lean.parameters()) == gpt2.num_parameters()
    assert len((BENCHMARKS / "lean_gpt.py").read_text().splitlines()) < 100

"""Parts: the engines that share a model out, on one GPU, through the command that users type."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import yaml

from hfscale.arguments import shape_of
from hfscale.config import shipped
from hfscale.planning.memory import sharding_of, step_memory_bytes
from hfscale.planning.shapes import new_shape
from tests.gpu.bench import ROOT, SHORT, Bench, memory_figures
from tests.gpu.report import Figure
from tests.gpu.training import BF16_EPS, WARM_UP, step_of, tokens_of_step

STEPS = 8
WRAPPERS = {
    "single_gpu": "GPT2LMHeadModel",
    "fsdp2": "FSDPGPT2LMHeadModel",
    "zero2": "DeepSpeedEngine",
}


def single_gpu(bench: Bench) -> Iterator[Figure]:
    """One process, with which the other two are compared."""
    return _launched(bench, "single_gpu")


def fsdp2(bench: Bench) -> Iterator[Figure]:
    """PyTorch's own sharding."""
    return _launched(bench, "fsdp2")


def zero2(bench: Bench) -> Iterator[Figure]:
    """DeepSpeed's."""
    return _launched(bench, "zero2")


def _launched(bench: Bench, config: str) -> Iterator[Figure]:
    """`hfscale pretrain --config gpt2_small --accelerate CONFIG --num_processes 1`.

    Raises RuntimeError: the launch failed, or trained with something else.
    """
    args, training_args = bench.pretrain(bench.sizes.small)
    notes = _train(bench, config)
    if notes["wrapper"] != WRAPPERS[config]:
        raise RuntimeError(f"the model was wrapped by {notes['wrapper']}, not {WRAPPERS[config]}")
    yield Figure(config, "model wrapped by", notes["wrapper"])
    ends = notes["ends"][WARM_UP:]
    seconds = statistics.median(b - a for a, b in zip(ends, ends[1:], strict=False))
    tokens = tokens_of_step(training_args, args.max_position_embeddings)
    yield Figure(config, "speed, median of the steps", tokens / seconds, "tokens/s")
    launch = yaml.safe_load(shipped("accelerate_configs", "*.yaml")[config].read_text("utf-8"))
    shape = new_shape(shape_of(args), bench.sizes.vocab_size)
    step = step_of(training_args, args.max_position_embeddings)
    planned = step_memory_bytes(shape, step, sharding_of(launch, 1))
    yield from memory_figures(config, notes["peak_bytes"], planned)
    reference = bench.folder / "single_gpu" / "notes.json"
    if config != "single_gpu" and reference.is_file():
        pairs = zip(notes["losses"], json.loads(reference.read_text())["losses"], strict=True)
        off = max(abs(loss / other - 1) for loss, other in pairs)
        case = f"{config}, against single_gpu"
        yield Figure(case, "largest relative difference of a loss", off, "", at_most=BF16_EPS)


def _train(bench: Bench, config: str) -> dict[str, Any]:
    """What one launch noted.

    Raises RuntimeError: it failed; with the last line that it wrote.
    """
    folder = bench.folder / config
    folder.mkdir(exist_ok=True)
    more = {"output_dir": folder / "run", "max_steps": STEPS, "logging_steps": 1, **SHORT}
    words = bench.flags(bench.sizes.small, **more)
    launcher = ["--accelerate", config, "--num_processes", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "hfscale.cli", "tests/gpu/rank.py", *words, *launcher],
        cwd=ROOT,
        env=os.environ | {"RANK_NOTES": str(folder), "PYTHONPATH": _search_path()},
        capture_output=True,
        text=True,
    )
    print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(f"{config}: exit status {done.returncode}: {lines[-1]}")
    return json.loads((folder / "notes.json").read_text())


def _search_path() -> str:
    """Of modules: this checkout first, which need not be installed."""
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(ROOT), *([given] if given else [])])

"""The first two parts: text, tokenizer and machine; and what the card's matrix units reach."""

import json
import platform
import time
import tomllib
from collections.abc import Iterator
from functools import partial

from packaging.requirements import Requirement

from tests.gpu.bench import ROOT, Bench
from tests.gpu.report import Figure

SECONDS_PER_SIZE = 0.7  # long enough that the clocks have settled


def prepare(bench: Bench) -> Iterator[Figure]:
    """Text and tokenizer for all parts: Python's own documentation, in a vocabulary of the size
    that is asked for. Also `about.json`, the machine.
    """
    from hfscale.data.embedded import load_embedded
    from hfscale.data.tokenizer import train_bpe
    from hfscale.process import versions

    documents = load_embedded("embedded:python-docs")
    documents = documents.select(range(min(bench.sizes.documents, len(documents))))
    documents.to_json(bench.folder / "texts.jsonl")
    learned = train_bpe(documents, min(8192, bench.sizes.vocab_size))
    tokenizer = _filled_up(learned, bench.sizes.vocab_size)
    tokenizer.save_pretrained(bench.folder / "tokenizer")
    about = {"device": _device_name(bench)} | _marked(versions())
    (bench.folder / "about.json").write_text(json.dumps(about))
    yield Figure("text", "documents", len(documents))
    yield Figure("tokenizer", "vocabulary", len(tokenizer), "tokens")


def _filled_up(tokenizer, size: int):
    """The same tokenizer with names that never occur behind its own, up to `size`: what a larger
    vocabulary costs, without the text to learn it from.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    for index in range(len(tokenizer), size):
        vocabulary[f"<unused {index}>"] = index
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
    )


def _marked(installed: dict[str, str | None]) -> dict[str, str]:
    """The versions, with what pyproject.toml asks for beside those that it does not allow."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = map(Requirement, [*project["dependencies"], *extras["deepspeed"]])
    allowed = {requirement.name: requirement.specifier for requirement in asked}
    marked = {}
    for name, version in installed.items():
        marked[name] = version or "none"
        if version and name in allowed and not allowed[name].contains(version, prereleases=True):
            marked[name] += f" (pyproject.toml: {allowed[name]})"
    return marked


def _device_name(bench: Bench) -> str:
    import torch

    if not bench.on_gpu:
        return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"
    card = torch.cuda.get_device_properties(0)
    return f"{card.name} {card.total_memory / 1e9:.1f} GB, CUDA {torch.version.cuda}"


def matmul(bench: Bench) -> Iterator[Figure]:
    """Operations a second of square bf16 matrix products on random data. The best size is what MFU
    is a share of.
    """
    import torch

    best = 0.0
    for side in bench.sizes.matmul:
        left = torch.randn(side, side, device=bench.device, dtype=torch.bfloat16)
        right = torch.randn(side, side, device=bench.device, dtype=torch.bfloat16)
        out = torch.empty_like(left)
        rate = _rate(bench, partial(torch.mm, left, right, out=out), 2 * side**3)
        best = max(best, rate)
        yield Figure(f"{side} x {side} x {side}, bf16", "rate", rate / 1e12, "TFLOP/s")
    (bench.folder / "matmul.json").write_text(json.dumps({"flops_per_second": best}))
    yield Figure("best of these", "rate that MFU is a share of", best / 1e12, "TFLOP/s")


def _rate(bench: Bench, work, operations: int) -> float:
    """The median of batches of calls, after as long a time of warming up."""
    once = min(bench.seconds(work) for _ in range(3))
    calls = max(1, round(SECONDS_PER_SIZE / 5 / once))

    def batch() -> None:
        for _ in range(calls):
            work()

    end = time.monotonic() + SECONDS_PER_SIZE
    while time.monotonic() < end:
        bench.seconds(batch)
    seconds = sorted(bench.seconds(batch) for _ in range(5))[2]
    return operations * calls / seconds

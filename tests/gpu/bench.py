"""What the parts of the GPU run share: sizes, data, clocks, memory, paired rounds."""

import gc
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.gpu.report import Figure

ROOT = Path(__file__).parents[2]
GB = 1e9


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    vocab_size: int
    documents: int  # of the embedded text
    small: tuple[str, ...]  # flags of pretrain: the config, and what a trial makes smaller
    large: tuple[str, ...]
    matmul: tuple[int, ...]  # sides of square matrices
    rounds: int  # of paired measurements, at most
    steps: int  # in a round, of the small model
    cpu_shape: dict[str, int]  # of the model whose losses are compared with the CPU's
    cpu_rows: int
    new_tokens: int
    most_rows: int | None  # that auto_batch tries; None: more than the card's memory holds
    compile_backend: str


CONFIGS = ROOT / "recipes" / "configs" / "pretrain"
# Of a run of a few steps, whose schedule in the config is for thousands.
SHORT = {"warmup_steps": 0, "lr_scheduler_kwargs": '{"num_decay_steps": 1}'}
FULL = Sizes(
    vocab_size=50257,
    documents=10**6,
    small=("--config", str(CONFIGS / "gpt2_small.yaml")),
    large=("--config", str(CONFIGS / "gpt2_xl.yaml")),
    matmul=(4096, 8192, 16384),
    rounds=8,
    steps=4,
    cpu_shape={"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 256},
    cpu_rows=2,
    new_tokens=128,
    most_rows=None,
    compile_backend="inductor",
)
TINY_FLAGS = (
    *(
        "--num_hidden_layers",
        "1",
        "--num_attention_heads",
        "2",
        "--hidden_size",
        "64",
        "--max_position_embeddings",
        "64",
    ),
    *("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2"),
    *("--dataloader_num_workers", "0", "--tf32", "false"),
)
TINY = Sizes(
    vocab_size=600,
    documents=30,
    small=(*FULL.small, *TINY_FLAGS),
    large=(*FULL.large, *TINY_FLAGS),
    matmul=(64, 128),
    rounds=2,
    steps=1,
    cpu_shape={"n_layer": 2, "n_head": 2, "n_embd": 64, "n_positions": 64},
    cpu_rows=4,
    new_tokens=8,
    most_rows=8,
    compile_backend="eager",
)


@dataclass(frozen=True)
class Bench:
    """Where a part runs, with what, and until when."""

    folder: Path  # of prepared data and what the parts write
    device: str  # cuda or cpu
    sizes: Sizes
    log: Path = Path(os.devnull)  # of what the parts print
    deadline: float = float("inf")  # of time.monotonic()

    def until(self, deadline: float) -> "Bench":
        """The same with another deadline."""
        return replace(self, deadline=deadline)

    def has_time(self) -> bool:
        """Whether a part may start another round."""
        return time.monotonic() < self.deadline

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU's memory and clock to read."""
        return self.device == "cuda"

    def tokenizer(self) -> Any:
        """The prepared tokenizer, of `sizes.vocab_size` tokens."""
        from hfscale.data.tokenizer import load_pretrained_tokenizer

        return load_pretrained_tokenizer(str(self.folder / "tokenizer"))

    def documents(self) -> Any:
        """The prepared text, a `Dataset`."""
        from hfscale.data.sources import load_documents

        return load_documents(str(self.folder / "texts.jsonl"))

    def rows(
        self,
        max_length: int,
        packing: str = "wrapped",
        *,
        least_documents: int = 1,
        at_least: int = 0,
    ) -> Any:
        """The text in rows, documents kept apart, over and over until there are `at_least`.

        Args:
            least_documents: in a row; others are left out. A batch of rows with a single one needs
                no mask, and would take other kernels, which are compiled when it first comes.
        """
        from datasets import concatenate_datasets

        from hfscale.data.packing import pack_documents

        rows = pack_documents(self.documents(), self.tokenizer(), max_length, packing=packing)
        rows = rows.select_columns(["input_ids", "labels", "position_ids"])
        rows = rows.filter(
            lambda positions: positions.count(0) >= least_documents, input_columns="position_ids"
        )
        copies = max(1, math.ceil(at_least / len(rows)))
        return concatenate_datasets([rows] * copies)

    def flags(self, flags: tuple[str, ...], **more: Any) -> list[str]:
        """The words of a run of pretrain that leaves out all but the training."""
        given: dict[str, Any] = {
            "source": self.folder / "texts.jsonl",
            "tokenizer": self.folder / "tokenizer",
            "output_dir": self.folder / "run",
            "max_steps": 100_000,  # a callback ends it
            "validation_fraction": 0.05,
            "eval_strategy": "no",
            "eval_on_start": "false",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": "true",
        }
        if not self.on_gpu:
            given["use_cpu"] = "true"
        words = list(flags)
        for name, value in (given | more).items():
            words += [f"--{name}", str(value)]
        return words

    def pretrain(self, flags: tuple[str, ...], **more: Any) -> tuple[Any, Any]:
        """The recipe's own arguments and TrainingArguments for `flags`."""
        from hfscale.config import parse_args
        from hfscale.training.training_args import training_arguments
        from recipes.pretrain import PretrainArguments

        words = self.flags(flags, **more)
        args = parse_args(PretrainArguments, words, recipe=str(ROOT / "recipes" / "pretrain.py"))
        training_args = training_arguments(args.training, width=args.hidden_size)
        _unset_tf32()
        return args, training_args

    def synchronize(self) -> None:
        """Wait for the GPU."""
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any]) -> float:
        """Of one call, until the GPU has done all of it."""
        self.synchronize()
        start = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - start

    def matmul_rate(self) -> float | None:
        """Operations a second that the part `matmul` measured; None: it did not."""
        path = self.folder / "matmul.json"
        return json.loads(path.read_text())["flops_per_second"] if path.is_file() else None


def _unset_tf32() -> None:
    """Take back how TrainingArguments set TF32, which does nothing for products in bf16: compilers
    (up to torch 2.12 for any model, later for flex attention) read the older switch and refuse
    where the newer one is set.
    """
    import torch

    if hasattr(torch.backends, "fp32_precision"):
        torch.backends.fp32_precision = "none"


class PeakMemory:
    """The most bytes of live tensors from now on, beyond those that are there already."""

    def __init__(self, bench: Bench):
        import torch

        self._on_gpu = bench.on_gpu
        if self._on_gpu:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()

    def read(self) -> int | None:
        """None: a CPU, whose allocator keeps no account."""
        import torch

        return torch.cuda.max_memory_allocated() - self._before if self._on_gpu else None


def paired(
    bench: Bench, sides: dict[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each side in each round; the sides take turns, each round begins with the next
    one. One round at least, after one that is thrown away.
    """
    for work in sides.values():
        bench.seconds(work)
    names = list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(bench.seconds(sides[name]))
        if not bench.has_time():
            break
    return seconds


def speed(case: str, tokens: float, seconds: list[float]) -> Figure:
    """Tokens a second over rounds of so many tokens."""
    value, interval = _ratio([tokens] * len(seconds), seconds)
    return Figure(case, "speed", value, "tokens/s", interval)


def speed_ratio(
    case: str, name: str, seconds: list[float], reference: list[float], **limits: float
) -> Figure:
    """How many times as fast as the reference, over paired rounds."""
    value, interval = _ratio(reference, seconds)
    return Figure(case, name, value, "", interval, **limits)


def _ratio(above: list[float], below: list[float]) -> tuple[float, list[float] | None]:
    """Of the sums over rounds, with its bootstrap interval (None: a single round)."""
    import numpy as np

    from hfscale.metrics.intervals import estimate

    found = estimate(
        np.column_stack([above, below]), lambda sums: {"ratio": sums[..., 0] / sums[..., 1]}
    )
    return found["ratio"], found["ratio_ci95"]


def mfu(
    case: str, flops: float, speed: Figure, tokens: float, rate: float | None, **limits: float
) -> Iterator[Figure]:
    """The share of the measured matmul rate that the model's own operations reach, in percent; no
    figure without a rate.

    Args:
        flops: of a round of so many `tokens`.
        rate: operations a second.
    """
    if rate is None:
        return
    per_token = 100 * flops / tokens / rate
    interval = [per_token * value for value in speed.interval] if speed.interval else None
    yield Figure(case, "MFU", per_token * speed.value, "%", interval, **limits)


def memory_figures(case: str, peak: int | None, planned: dict[str, int]) -> Iterator[Figure]:
    """The peak beside the plan, where it was read."""
    if peak is None:
        return
    plan = sum(planned.values())
    yield Figure(case, "peak memory", peak / GB, "GB")
    yield Figure(case, "plan", plan / GB, "GB")
    yield Figure(case, "plan / peak", plan / peak, "", at_least=0.9, at_most=1.1)

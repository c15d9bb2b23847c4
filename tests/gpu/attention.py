"""Part: attention that keeps packed documents apart, by sdpa and by flex attention."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, GPT2LMHeadModel, set_seed
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.masking_utils import flex_attention_mask

from hfscale.arguments import shape_of
from hfscale.data.packing import collate_rows
from hfscale.new_models import new_model
from hfscale.training.trainer import IGNORED, next_token_loss
from tests.gpu.bench import GB, Bench, PeakMemory, paired, speed, speed_ratio
from tests.gpu.report import Figure

# GPT-2 does not say that it takes flex_attention, so transformers refuses that name; under another
# one it runs, by upstream's own functions.
FLEX = "flex_of_packed_rows"
SHOWN = {"sdpa": "sdpa", FLEX: "flex attention"}
MOST_DIFFERENCE = {torch.float32: 1e-4, torch.bfloat16: torch.finfo(torch.bfloat16).eps}
# Weights large enough that a token depends on those before it, as those of a trained model do.
INITIALIZER_RANGE = 0.1
DIFFERENCE = "largest relative difference of a loss"

Batch = dict[str, torch.Tensor]


class Segment(NamedTuple):
    """Where a document stands."""

    row: int
    start: int
    end: int


def packed_attention(bench: Bench) -> Iterator[Figure]:
    """Losses of packed documents against each document in a row of its own, then speed."""
    AttentionInterface.register(FLEX, flex_attention_forward)
    AttentionMaskInterface.register(FLEX, flex_attention_mask)
    # Inside, transformers and torch compile flex attention; a trial has no time for that.
    compiler = partial(torch.compile, backend=bench.sizes.compile_backend)
    with patch.object(torch, "compile", compiler):
        yield from _measure(bench)


def _measure(bench: Bench) -> Iterator[Figure]:
    args, training_args = bench.pretrain(bench.sizes.small)
    set_seed(0)
    sizes = shape_of(args) | {"initializer_range": INITIALIZER_RANGE}
    model = new_model(bench.tokenizer(), **sizes).to(bench.device)
    batch = _fullest_rows(
        bench, args.max_position_embeddings, training_args.per_device_train_batch_size
    )
    segments = list(_segments(batch))
    yield Figure("rows", "documents in a row", len(segments) / len(batch["input_ids"]))
    yield from _differences(model, batch, segments)
    yield from _speeds(bench, model, batch)


def _fullest_rows(bench: Bench, max_length: int, rows: int) -> Batch:
    """The rows with the most documents."""
    packed = list(bench.rows(max_length, packing="bfd_split"))
    packed.sort(key=lambda row: -row["position_ids"].count(0))
    batch = collate_rows(packed[:rows])
    return {name: value.to(bench.device) for name, value in batch.items()}


def _segments(batch: Batch) -> Iterator[Segment]:
    """The documents that have targets."""
    length = batch["input_ids"].shape[1]
    for row, positions in enumerate(batch["position_ids"].tolist()):
        starts = [place for place, position in enumerate(positions) if position == 0]
        for start, end in zip(starts, [*starts[1:], length], strict=True):
            if (batch["labels"][row, start + 1 : end] != IGNORED).any():
                yield Segment(row, start, end)


def _differences(model: GPT2LMHeadModel, batch: Batch, segments: list[Segment]) -> Iterator[Figure]:
    """Of the documents' losses, and of what they are where documents see each other: the comparison
    must show that.
    """
    model.eval()
    for dtype, most in MOST_DIFFERENCE.items():
        precision = str(dtype).removeprefix("torch.")
        model.set_attn_implementation("sdpa")
        alone = _losses_alone(model, batch, segments, dtype)
        for name, shown in SHOWN.items():
            model.set_attn_implementation(name)
            packed = _losses_in_rows(model, batch, segments, dtype)
            off = ((packed - alone) / alone).abs().max().item()
            case = f"{shown}, {precision}, against one document a row"
            yield Figure(case, DIFFERENCE, off, "", at_most=most)
    model.set_attn_implementation("sdpa")
    exact = torch.float32
    alone = _losses_alone(model, batch, segments, exact)
    together = _losses_in_rows(model, batch, segments, exact, keeps_apart=False)
    off = ((together - alone) / alone).abs().max().item()
    case = "documents see each other, float32, against one document a row"
    yield Figure(case, DIFFERENCE, off, "", at_least=10 * MOST_DIFFERENCE[exact])


@torch.no_grad()
def _losses_in_rows(
    model: GPT2LMHeadModel,
    batch: Batch,
    segments: list[Segment],
    dtype: torch.dtype,
    *,
    keeps_apart: bool = True,
) -> torch.Tensor:
    """The mean loss of each document where it stands; row by row, for the sake of memory."""
    losses = []
    for row in range(len(batch["input_ids"])):
        inputs = {
            "input_ids": batch["input_ids"][row : row + 1],
            "position_ids": batch["position_ids"][row : row + 1],
        }
        if not keeps_apart:  # with any mask, transformers makes none of the position ids
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        logits = _logits(model, inputs, dtype)
        for segment in segments:
            if segment.row == row:
                place = slice(segment.start, segment.end)
                losses.append(_loss(logits[place], batch["labels"][row, place]))
    return torch.stack(losses)


@torch.no_grad()
def _losses_alone(
    model: GPT2LMHeadModel, batch: Batch, segments: list[Segment], dtype: torch.dtype
) -> torch.Tensor:
    """The mean loss of each document in a row of its own."""
    losses = []
    for row, start, end in segments:
        logits = _logits(model, {"input_ids": batch["input_ids"][row : row + 1, start:end]}, dtype)
        losses.append(_loss(logits, batch["labels"][row, start:end]))
    return torch.stack(losses)


def _logits(model: GPT2LMHeadModel, inputs: Batch, dtype: torch.dtype) -> torch.Tensor:
    """Of the only row."""
    with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        return model(**inputs, use_cache=False).logits[0]


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits[:-1].float(), labels[1:], ignore_index=IGNORED)


def _speeds(bench: Bench, model: GPT2LMHeadModel, batch: Batch) -> Iterator[Figure]:
    """A forward and a backward pass in bf16, and what keeping documents apart costs at all. On a
    CPU, where flex attention has no backward pass, the forward pass alone.
    """
    model.train()
    plain = {name: value for name, value in batch.items() if name != "position_ids"}
    sides = {
        "sdpa": ("sdpa", batch),
        "flex attention": (FLEX, batch),
        "sdpa, documents see each other": ("sdpa", plain),
    }

    def run(name: str) -> None:
        implementation, inputs = sides[name]
        model.set_attn_implementation(implementation)
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        with torch.autocast(bench.device, torch.bfloat16), torch.set_grad_enabled(bench.on_gpu):
            loss = next_token_loss(model(**inputs, use_cache=False), labels)
        if bench.on_gpu:
            loss.backward()
            model.zero_grad()

    works = {name: (lambda name=name: run(name)) for name in sides}
    seconds = paired(bench, works, bench.sizes.rounds)
    for name, work in works.items():
        yield speed(name, batch["input_ids"].numel(), seconds[name])
        if name != "sdpa":
            yield speed_ratio(name, "speed / sdpa", seconds[name], seconds["sdpa"])
        memory = PeakMemory(bench)
        work()
        peak = memory.read()
        if peak is not None:
            yield Figure(name, "peak memory beside the weights", peak / GB, "GB")

"""The largest micro-batch that memory holds (`--auto_batch`)."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate.utils import gather
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from hfscale.process import InputError

BYTES_OF_ADAM = 8  # per parameter: two float32 moments


def split_batch(inputs: Mapping[str, Any], pieces: int) -> list[dict[str, Any]]:
    """The batch in at most this many parts of nearly equal size, the largest first, each with at
    least one row.
    """
    pieces = min(pieces, len(inputs["input_ids"]))
    parts: dict[str, Any] = {}
    for name, value in inputs.items():
        has_rows = torch.is_tensor(value) and value.dim() > 0
        parts[name] = value.tensor_split(pieces) if has_rows else [value] * pieces
    return [{name: part[i] for name, part in parts.items()} for i in range(pieces)]


def find_pieces(
    model: torch.nn.Module, inputs: Mapping[str, Any], try_piece: Callable[[dict[str, Any]], Any]
) -> int:
    """Into how many parts (1, 2, 4, ...) the batch must be split so that `try_piece`, a forward and
    a backward pass without communication, runs in memory twice (the second time beside the
    gradients of the first) while AdamW's state has its place. The largest number of all ranks;
    gradients and random state are left as they were.

    Raises InputError: a single row does not fit.
    """
    rows = len(inputs["input_ids"])
    pieces = 1
    # Twice as many as there are rows means: not even one fits.
    while not _fits(model, split_batch(inputs, pieces)[0], try_piece) and pieces < 2 * rows:
        pieces *= 2
    of_this_rank = torch.tensor([pieces], device=inputs["input_ids"].device)
    of_all_ranks = int(gather(of_this_rank).max())
    if of_all_ranks >= 2 * rows > 0:
        raise InputError(
            "--auto_batch: not even one row fits into memory; take --activation_checkpointing, a "
            "shorter --max_length or a launch config that splits the model (hfscale plan shows "
            "which)"
        )
    return of_all_ranks


def _fits(
    model: torch.nn.Module, piece: dict[str, Any], try_piece: Callable[[dict[str, Any]], Any]
) -> bool:
    """Whether a piece runs twice while the optimizer's state has its place."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = trained[0].device
    size_bytes = BYTES_OF_ADAM * sum(parameter.numel() for parameter in trained)
    reserved = None
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            reserved = torch.empty(size_bytes, dtype=torch.uint8, device=device)
            for _ in range(2):
                try_piece(piece)
        return True
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        return False
    finally:
        del reserved
        for parameter in trained:
            parameter.grad = None
        clear_device_cache()

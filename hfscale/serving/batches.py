"""Texts that go on together, though they came at different times: rows of one batch that texts join
and leave at any step.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from hfscale.models import context_limit
from hfscale.process import InputError

TRIED_LENGTHS = (3, 9)  # of the rows with which a model is tried
ROOM_TOKENS = 64  # that a cache has for tokens to come


class Batch(Protocol):
    """The rows that go on. Logits are those of the next token, (rows, vocabulary)."""

    def join(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Take in rows of token ids; their logits."""

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Read one more token of each row; the logits of all."""

    def keep(self, places: Sequence[int]) -> None:
        """Let all rows but these go."""


class SharedBatch:
    """Rows that share their steps and a `DynamicCache`, filled up on the left to one length.

    The length is that of the longest row: columns that no row fills are cut off when rows leave.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        # A PeftModel's own forward takes anything.
        get_base: Any = getattr(model, "get_base_model", None)
        base = get_base() if get_base else model
        self._known = inspect.signature(base.forward).parameters
        self._cache: Any = None
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=model.device)

    @torch.inference_mode()
    def join(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Take in rows of token ids; their logits."""
        length = max(map(len, rows))
        filled = [[row[0]] * (length - len(row)) + [*row] for row in rows]
        mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
        ids = torch.tensor(filled, device=self.model.device)
        new_mask = torch.tensor(mask, device=self.model.device)
        positions = (new_mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache()
        cache.layer_class_to_replicate = RoomyLayer
        logits = self._forward(ids, new_mask, positions, cache)
        if cache.get_seq_length() != length:
            raise ValueError(f"the cache holds {cache.get_seq_length()} tokens of {length}")
        if self._cache is None:
            self._cache = cache
            self._mask = new_mask
        else:
            self._merge(cache, new_mask)
        return logits

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Read one more token of each row; the logits of all."""
        ids = torch.tensor(tokens, device=self.model.device).unsqueeze(-1)
        positions = self._mask.sum(-1, keepdim=True)
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        return self._forward(ids, self._mask, positions, self._cache)

    @torch.inference_mode()
    def keep(self, places: Sequence[int]) -> None:
        """Let all rows but these go."""
        if not places:
            self._cache = None
            return
        chosen = torch.tensor(places, device=self.model.device)
        self._mask = self._mask[chosen]
        unused = int(self._mask.argmax(-1).min())
        self._mask = self._mask[:, unused:]
        self._cache.batch_select_indices(chosen)
        for layer in self._cache.layers:
            layer.keys = layer.keys[..., unused:, :]
            layer.values = layer.values[..., unused:, :]

    def _forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        cache: DynamicCache,
    ) -> torch.Tensor:
        options = {"position_ids": positions, "logits_to_keep": 1}
        known = {name: value for name, value in options.items() if name in self._known}
        output = self.model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **known
        )
        return output.logits[:, -1]

    def _merge(self, cache: DynamicCache, mask: torch.Tensor) -> None:
        missing = self._mask.shape[-1] - mask.shape[-1]
        masks = (_left_filled(self._mask, -missing, -1), _left_filled(mask, missing, -1))
        self._mask = torch.cat(masks)
        for old, new in zip(self._cache.layers, cache.layers, strict=True):
            for name in ("keys", "values"):
                parts = (
                    _left_filled(getattr(old, name), -missing, -2),
                    _left_filled(getattr(new, name), missing, -2),
                )
                setattr(old, name, torch.cat(parts))


class RoomyLayer(DynamicLayer):
    """Keys and values with room behind them. Upstream copies all of them at each token, which on a
    CPU takes a third of the time of a small model's step.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._rooms: dict[str, torch.Tensor] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in new ones; all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._appended("keys", self.keys, key_states)
        self.values = self._appended("values", self.values, value_states)
        return self.keys, self.values

    def _appended(self, name: str, seen: Any, new: torch.Tensor) -> torch.Tensor:
        start = seen.shape[-2] if seen.numel() else 0
        end = start + new.shape[-2]
        room = self._rooms.get(name)
        # After rows came or went, `seen` lies elsewhere.
        fits = room is not None and room.data_ptr() == seen.data_ptr() and end <= room.shape[-2]
        if room is None or not fits:
            batch, heads, _, width = new.shape
            room = new.new_empty(batch, heads, end + ROOM_TOKENS, width)
            if start:
                room[..., :start, :] = seen
            self._rooms[name] = room
        room[..., start:end, :] = new
        return room[..., :end, :]


def _left_filled(tensor: torch.Tensor, count: int, dim: int) -> torch.Tensor:
    """The tensor with `count` zeros in front along a dimension counted from the end; as it is for
    less than one.
    """
    if count < 1:
        return tensor
    return torch.nn.functional.pad(tensor, (0, 0) * (-dim - 1) + (count, 0))


class SeparateRows:
    """Rows that are read anew at each step, one by one: slow, and right for any model, also one
    whose state cannot be filled up.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self._rows: list[list[int]] = []

    def join(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Take in rows of token ids; their logits."""
        self._rows += [[*row] for row in rows]
        return self._read(self._rows[-len(rows) :])

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Read one more token of each row; the logits of all."""
        for row, token in zip(self._rows, tokens, strict=True):
            row.append(token)
        return self._read(self._rows)

    def keep(self, places: Sequence[int]) -> None:
        """Let all rows but these go."""
        self._rows = [self._rows[place] for place in places]

    @torch.inference_mode()
    def _read(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.stack([read_alone(self.model, row) for row in rows])


def read_alone(model: PreTrainedModel, row: Sequence[int]) -> torch.Tensor:
    """(vocabulary,): the logits of the token that follows a row, without a cache."""
    ids = torch.tensor([row], device=model.device)
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return output.logits[0, -1]


@torch.inference_mode()
def batch_for(model: PreTrainedModel) -> Batch:
    """How texts of this model go on together: it is tried whether two rows of unequal length, of
    which one joins later and one leaves earlier, give in a `SharedBatch` what each gives alone.

    Raises InputError: the model cannot read a few tokens.
    """
    longest = max(TRIED_LENGTHS) + 2
    size = min(model.config.get_text_config().vocab_size, 50)
    short, long = TRIED_LENGTHS
    if longest > (context_limit(model) or longest):
        return SeparateRows(model)
    first = [1 + 5 * i % (size - 1) for i in range(longest)]
    second = [1 + 3 * i % (size - 1) for i in range(longest)]
    try:
        expected = [
            read_alone(model, first[:long]),
            read_alone(model, second[:short]),
            read_alone(model, first[: long + 1]),
            read_alone(model, second[: short + 1]),
            read_alone(model, second[: short + 2]),
        ]
    except Exception as error:  # whatever the model's own code raises
        raise InputError(
            f"model: {type(model).__name__} cannot read a few tokens: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None
    try:
        batch = SharedBatch(model)
        given = [*batch.join([first[:long]]), *batch.join([second[:short]])]
        given += batch.step([first[long], second[short]])
        batch.keep([1])
        given += batch.step([second[short + 1]])
    except Exception:  # a cache of another kind, or arguments that it does not know
        return SeparateRows(model)
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    spread = expected[0].std().item()
    is_same = all(
        torch.allclose(one.float(), other.float(), rtol=tolerance, atol=tolerance * spread)
        for one, other in zip(given, expected, strict=True)
    )
    return SharedBatch(model) if is_same else SeparateRows(model)

"""How much memory a training step takes, for any dense architecture: one is run on tensors that
have shapes and no values, and what is alive is counted after each operation. GPT-2's needs no
model (`planning.memory`).

Two blocks are run, with two and with three rows. What is alive is linear in the rows, and each
further block keeps what the second one keeps, so that these tell of any number of either.
"""

import copy
import functools
import itertools
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from hfscale.new_models import fake_model, num_experts
from hfscale.planning.memory import (
    FSDP_BLOCKS,
    Bytes,
    Sharding,
    Step,
    Weights,
    bucket_bytes,
    fullest_moment,
    gathered_bytes,
    muon_moment,
    state_bytes,
)

BLOCKS = 2
ROWS = (2, 3)  # of one row some operations are left out
# Kinds of bytes.
LOGITS = 0
HALF = 1  # others of two bytes a value
FULL = 2  # all others
Array: TypeAlias = "np.ndarray[Any, Any]"
MemoryOf: TypeAlias = Callable[[Step, Sharding], dict[str, int]]


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, beside those of a model's weights and their
    gradients.

    Args:
        model: whose gradients are taken away as they are made.
        vocab_size: the last dimension of logits.

    Attributes:
        in_head: whether what comes is made behind the last block, where logits are.
        after: bytes by kind after each operation.
        gradients: numbers of weights that had their gradient by then.
    """

    def __init__(self, model: nn.Module, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.in_head = False
        self.after: list[list[int]] = []
        self.gradients: list[int] = []
        self._now = [0, 0, 0]
        self._counted = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        for tensor in (*model.parameters(), *model.buffers()):
            self._known.add(tensor.untyped_storage())
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(self._take_gradient)

    @property
    def now(self) -> list[int]:
        """Bytes by kind."""
        return list(self._now)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf)
        self.after.append(self.now)
        self.gradients.append(self._counted)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        kind = self._kind(tensor)
        self._now[kind] += storage.nbytes()
        weakref.finalize(storage, self._free, kind, storage.nbytes())

    def _kind(self, tensor: torch.Tensor) -> int:
        if self.in_head and tensor.ndim > 1 and tensor.shape[-1] == self.vocab_size:
            return LOGITS
        return HALF if tensor.element_size() == 2 else FULL

    def _free(self, kind: int, size: int) -> None:
        self._now[kind] -= size

    def _take_gradient(self, parameter: torch.Tensor) -> None:
        self._counted += parameter.numel()
        parameter.grad = None


class Sizes(NamedTuple):
    """Bytes by kind (last dimension): those of so many rows are fixed + rows x by_row."""

    fixed: Array
    by_row: Array

    @classmethod
    def of(cls, two: Array, three: Array) -> "Sizes":
        """From what is measured with two rows and with three."""
        by_row = three - two
        return cls(two - 2 * by_row, by_row)


class Trace(NamedTuple):
    """What is alive after each operation of a step (operations x kinds)."""

    alive: Sizes
    block: Sizes  # that each block keeps until the backward pass
    gradients: Array  # numbers of weights that had theirs by then
    last_block: slice  # operations of its backward pass
    first_block: slice


def find_memory(config: PreTrainedConfig, parameters: int, step: Step) -> MemoryOf | None:
    """As `memory_of`; None: the step cannot be run without values, as with experts, which read
    what the router sends them.
    """
    if num_experts(config):
        return None
    try:
        memory = memory_of(config, parameters)
        memory(step, Sharding())
    except Exception:  # whatever a model's own code raises
        return None
    return memory


def memory_of(config: PreTrainedConfig, parameters: int) -> MemoryOf:
    """A function that says how many bytes a process of a training of all weights takes at its
    fullest moment, by part, as `planning.memory.step_memory_bytes`.

    Args:
        config: of a model without experts.
        parameters: that it has.
    """
    blocks = config.num_hidden_layers
    small = small_model(config)
    block = sum(weight.numel() for weight in find_blocks(small)[0].parameters())
    traced = functools.cache(functools.partial(trace_step, config))

    def memory(step: Step, sharding: Sharding) -> dict[str, int]:
        by_shape = matrices_by_shape(small) if step.muon else [0]
        weights = Weights(
            parameters=parameters,
            present=parameters,
            trained=parameters,
            idle=0,
            matrices=blocks * sum(by_shape) // BLOCKS,
            largest_matrices=blocks * max(by_shape) // BLOCKS,
            embeddings=parameters - blocks * block,
            block=block,
            blocks=blocks,
        )
        # FSDP and DeepSpeed run all in the compute type, where autocast keeps some in float32.
        whole = step.bf16 and sharding.engine in ("fsdp", "deepspeed")
        kind = {
            "max_length": step.max_length,
            "masked": step.masked,
            "autocast": step.bf16 and not whole,
            "dtype": torch.bfloat16 if whole else torch.float32,
        }
        training = traced(**kind, checkpointing=step.activation_checkpointing)
        evaluation = traced(**kind, evaluates=True)
        state = state_bytes(weights, step, sharding)
        moments = _training_moments(training, weights, step, sharding, state["gradients"])
        moments += _evaluation_moments(evaluation, weights, step)
        moments.append(muon_moment(weights, step, state["gradients"]))
        return fullest_moment(state, moments, step)

    return memory


def _training_moments(
    trace: Trace, weights: Weights, step: Step, sharding: Sharding, gradients: float
) -> list[Bytes]:
    """The fullest up to the backward pass of the last block, in it, and from that of the first one
    on; `gradients`: bytes of all of them.
    """
    rows = step.batch_size
    value = 4 if sharding.engine in ("none", "ddp") else step.width
    # Until the first block's turn no process gives away what it has.
    before = value * trace.gradients
    missing = weights.trained - trace.gradients[-1]
    after = gradients * (trace.gradients + missing) / weights.trained
    bucket = bucket_bytes(step, sharding)
    gathered = gathered_bytes(weights, step, sharding, 2)
    inside = gathered_bytes(weights, step, sharding, FSDP_BLOCKS)
    kept = weights.blocks - BLOCKS
    start = slice(0, trace.last_block.start)
    end = slice(trace.first_block.start, None)
    return [
        *_fullest(trace, start, rows, kept, before, gathered),
        *_fullest(trace, trace.last_block, rows, kept, before, bucket + inside),
        *_fullest(trace, end, rows, 0, after, bucket + gathered),
    ]


def _evaluation_moments(trace: Trace, weights: Weights, step: Step) -> list[Bytes]:
    """Of each further block autocast's copies of its weights are there, and nothing of its rows."""
    kept = weights.blocks - BLOCKS
    copies = trace.block._replace(by_row=0 * trace.block.by_row)
    trace = trace._replace(block=copies)
    return _fullest(trace, slice(None), step.eval_batch_size, kept, 0 * trace.gradients, 0)


def _fullest(
    trace: Trace, part: slice, rows: int, kept: int, gradients: Array, communication: float
) -> list[Bytes]:
    """Of some of the operations those with the most bytes, with their gradients and without;
    `kept`: further blocks that keep theirs.
    """
    fixed = trace.alive.fixed[part] + kept * trace.block.fixed
    grown = rows * (trace.alive.by_row[part] + kept * trace.block.by_row)
    total = (fixed + grown).sum(axis=1)
    return [
        {
            "logits": fixed[at, LOGITS] + grown[at, LOGITS],
            "bf16 copies": fixed[at, HALF],
            "activations": grown[at, HALF] + grown[at, FULL],
            "gradients": fixed[at, FULL] + gradients[part][at],
            "communication": communication,
        }
        for at in {int(np.argmax(total)), int(np.argmax(total + gradients[part]))}
    ]


def trace_step(
    config: PreTrainedConfig,
    *,
    max_length: int,
    masked: bool,
    autocast: bool,
    dtype: torch.dtype,
    checkpointing: bool = False,
    evaluates: bool = False,
) -> Trace:
    """What is alive in a step, or an evaluation batch, of two blocks.

    Args:
        config: of any number of blocks.
        max_length: tokens of a row.
        masked: whether a row holds several documents that do not attend to each other.
        autocast: whether products are computed in bf16, with weights of `dtype`.
        dtype: of the weights.
        checkpointing: whether blocks are computed a second time.
        evaluates: no gradients, and no loss.
    """
    runs = []
    for rows in ROWS:
        model = small_model(config, dtype).train(not evaluates)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        run = _Run(model, config.vocab_size)
        ids = torch.zeros(rows, max_length, dtype=torch.long)
        # These have values: whether documents share a row is read from them.
        positions = torch.arange(max_length) % (max(1, max_length // 2) if masked else max_length)
        with run.alive, torch.set_grad_enabled(not evaluates):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                output = model(
                    input_ids=ids, position_ids=positions.expand_as(ids), use_cache=False
                )
                logits = output.logits
                del output
                if evaluates:
                    logits = logits.float()  # as Trainer keeps them
                else:
                    loss = ForCausalLMLoss(logits, ids, config.vocab_size)
            del logits
            if not evaluates:
                loss.backward()
        runs.append(run)
    return _trace_of(*runs)


class _Run:
    """Notes what is alive in a step of a model of two blocks, and where its blocks are.

    Attributes:
        alive: after each operation.
        kept: bytes by kind at the end of each block's forward pass.
        begins, ends: operations at which the backward pass of a block begins and ends, by block.
    """

    def __init__(self, model: PreTrainedModel, vocab_size: int) -> None:
        self.alive = Alive(model, vocab_size)
        self.kept: list[list[int]] = []
        self.begins = [0] * BLOCKS
        self.ends = [0] * BLOCKS
        for index, block in enumerate(find_blocks(model)):
            block.register_forward_hook(self._note_kept)
            block.register_full_backward_pre_hook(functools.partial(self._note, self.begins, index))
            block.register_full_backward_hook(functools.partial(self._note, self.ends, index))

    def _note_kept(self, *_: Any) -> None:
        self.kept.append(self.alive.now)  # with checkpointing once more on the way back
        self.alive.in_head = len(self.kept) == BLOCKS

    def _note(self, places: list[int], index: int, *_: Any) -> None:
        places[index] = len(self.alive.after)
        self.alive.in_head = False


def _trace_of(two: _Run, three: _Run) -> Trace:
    """From the same step with two rows and with three."""
    kept = [np.subtract(run.kept[1], run.kept[0]) for run in (two, three)]
    return Trace(
        Sizes.of(np.array(two.alive.after), np.array(three.alive.after)),
        Sizes.of(*kept),
        np.array(two.alive.gradients),
        slice(two.begins[-1], two.ends[-1]),
        slice(two.begins[0], two.ends[0]),
    )


def small_model(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """As the configuration says, of two blocks and without values."""
    small = copy.deepcopy(config)
    for name, value in vars(config).items():
        # An entry for each block.
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            setattr(small, name, list(itertools.islice(itertools.cycle(value), BLOCKS)))
    small.num_hidden_layers = BLOCKS
    return fake_model(small, dtype)


def find_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Of a model that has two."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return next(module for module in lists if len(module) == BLOCKS)


def matrices_by_shape(model: PreTrainedModel) -> list[int]:
    """Numbers in all matrices of a shape that Muon trains, for each shape."""
    from hfscale.training.optimizers import hidden_matrices  # and with it all of Trainer

    numbers: Counter[tuple[int, ...]] = Counter()
    for name, (num_matrices, outputs_dim) in hidden_matrices(model).items():
        shape = list(model.get_parameter(name).shape)
        shape[outputs_dim] //= num_matrices
        numbers[tuple(shape)] += model.get_parameter(name).numel()
    return list(numbers.values())

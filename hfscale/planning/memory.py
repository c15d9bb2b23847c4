"""How much memory a training step takes, by closed formulas; needs neither torch nor the model."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from hfscale.planning.flops import Block, Layer, Shape, Trained, blocks_in_training

# Values DeepSpeed reduces at a time by default: a buffer made in every backward pass.
DEEPSPEED_BUCKET = 500_000_000
ZERO3_LIVE = 1_000_000_000  # weights that ZeRO-3 keeps gathered by default: all of a smaller model
MASK_BYTES = 1  # of a value that dropout left out or not, on a GPU; on a CPU it is a value itself
# Activations whose backward pass needs what they gave, not what they read.
KEPT_BY_RESULT = ("relu", "tanh")
# Blocks in flight: one used, one gathered ahead, their copies and gradients on the way (measured).
FSDP_BLOCKS = 5
# Bytes of a weight in 4 bits, with its scales: 8 bits for 64 weights, 32 bits for 256 of those.
BYTES_IN_4BIT = 4.127 / 8
Bytes: TypeAlias = dict[str, float]  # by part, of one process
PARTS = (
    "weights",
    "bf16 copies",
    "gradients",
    "optimizer",
    "activations",
    "logits",
    "communication",
)


class Step(NamedTuple):
    """What one process computes at a time."""

    batch_size: int
    max_length: int
    eval_batch_size: int = 0
    bf16: bool = False  # or fp16: two bytes a value
    activation_checkpointing: bool = False
    accumulates: bool = False
    masked: bool = True  # documents of a row do not attend to each other
    lora_r: int = 0
    load_in_4bit: bool = False
    target_modules: tuple[str, ...] = ()
    freeze_layers: int = 0
    lora_dropout: float = 0.0
    optimizer_bytes: int = 8  # per trained parameter: AdamW's two moments in float32
    muon: bool = False  # for the matrices of the blocks, AdamW for all else
    averages_weights: bool = False  # a float32 copy of what is trained, beside the optimizer's
    on_cpu: bool = False

    @property
    def trained(self) -> Trained:
        """Which weights are trained."""
        return Trained(self.lora_r, self.target_modules, self.freeze_layers)

    @property
    def width(self) -> int:
        """Bytes of a value in the type that is computed in."""
        return 2 if self.bf16 else 4


class Sharding(NamedTuple):
    """How processes share a model: stage 1 splits the optimizer's state, 2 gradients too, 3 weights
    too.
    """

    engine: str = "none"  # none, ddp, fsdp, deepspeed
    stage: int = 0
    processes: int = 1
    offload: str = "none"  # none, cpu or nvme: where the optimizer's state lies


def sharding_of(launch_config: dict[str, Any], processes: int) -> Sharding:
    """What the content of an accelerate config (its YAML) means for this many processes."""
    if launch_config.get("distributed_type") == "DEEPSPEED":
        deepspeed = launch_config.get("deepspeed_config") or {}
        return Sharding(
            "deepspeed",
            deepspeed.get("zero_stage", 2),
            processes,
            deepspeed.get("offload_optimizer_device", "none"),
        )
    if launch_config.get("distributed_type") == "FSDP":
        fsdp = launch_config.get("fsdp_config") or {}
        stage = 3 if _is_true(fsdp.get("fsdp_reshard_after_forward", True)) else 2
        offload = "cpu" if _is_true(fsdp.get("fsdp_offload_params", False)) else "none"
        return Sharding("fsdp", stage, processes, offload)
    return Sharding("ddp" if processes > 1 else "none", 0, processes)


def _is_true(value: Any) -> bool:
    """accelerate reads true and "true" alike."""
    return str(value).lower() == "true"


class Weights(NamedTuple):
    """How many numbers a model in training is made of: what its state and the talk between
    processes follow.
    """

    parameters: int  # without adapters
    present: int  # and with them
    trained: int
    idle: int  # of those, that never get a gradient
    matrices: int  # that Muon trains
    largest_matrices: int  # of them, those of one shape together
    embeddings: int
    block: int
    blocks: int
    in_4bit: int = 0  # that are held in four bits


def weights_of(shape: Shape, step: Step) -> Weights:
    """Of a GPT-2 of which `step` trains all or some."""
    by_shape = _values_by_shape(shape, step)
    return Weights(
        parameters=shape.parameters(),
        present=shape.parameters() + shape.lora_parameters(*step.trained),
        trained=step.trained.parameters(shape),
        idle=step.trained.idle_parameters(shape),
        matrices=sum(by_shape),
        largest_matrices=max(by_shape, default=0),
        embeddings=shape.embedding_parameters(),
        block=shape.block_parameters(),
        blocks=shape.n_layer,
        in_4bit=_held_in_4bit(shape, step),
    )


def step_memory_bytes(
    shape: Shape, step: Step, sharding: Sharding, weights: Weights | None = None
) -> dict[str, int]:
    """Bytes per process by part at the fullest moment of training with AdamW and fused attention.

    The moments compared: the end of the forward pass, the loss, the backward pass of the last
    block, the end of the backward pass, Muon's step, an evaluation batch. Activations are what
    autograd keeps, counted operation by operation and found again in torch's allocator
    (docs/planning.md). Allocator, libraries and device contexts come on top.

    `weights`: those of another model, that is taken for a GPT-2 of this shape in all else.
    """
    weights = weights or weights_of(shape, step)
    state = state_bytes(weights, step, sharding)
    moments = _moments(shape, weights, step, sharding, state["gradients"])
    return fullest_moment(state, moments, step)


def fullest_moment(state: Bytes, moments: Sequence[Bytes], step: Step) -> dict[str, int]:
    """Bytes by part of the state and the largest of the moments on top of it; gradients are there
    as each moment says, with accumulation all along.
    """
    gradients = state["gradients"]
    if step.accumulates:  # those of the passes before
        moments = [
            {**moment, "gradients": max(gradients, moment.get("gradients", 0))}
            for moment in moments
        ]
    lasting = {part: size for part, size in state.items() if part != "gradients"}
    fullest = max(moments, key=lambda moment: sum(moment.values()))
    return {part: int(lasting.get(part, 0) + fullest.get(part, 0)) for part in PARTS}


def state_bytes(weights: Weights, step: Step, sharding: Sharding) -> Bytes:
    """What lies in memory from step to step. Outside DeepSpeed weights, gradients and both moments
    are float32: 16 bytes a parameter. DeepSpeed trains a copy in the compute type and keeps a
    float32 master: 12 bytes in `optimizer`.
    """
    is_deepspeed = sharding.engine == "deepspeed"
    value = step.width if is_deepspeed else 4
    master = 4 if is_deepspeed else 0
    trained = weights.trained
    average = 4 * trained if step.averages_weights else 0
    if not is_deepspeed:  # which keeps state for weights without a gradient, too
        trained -= weights.idle
    optimizer = (master + step.optimizer_bytes) * trained
    if step.muon:  # which keeps one number of a matrix, where AdamW keeps two
        optimizer -= 4 * weights.matrices
    state = {
        "weights": value * weights.present - (value - BYTES_IN_4BIT) * weights.in_4bit,
        "gradients": value * trained,
        "optimizer": optimizer + average,
        # DDP's buckets are one more copy of the gradients.
        "communication": 4 * trained if sharding.engine == "ddp" else 0,
    }
    for split_from, part in enumerate(("optimizer", "gradients", "weights"), 1):
        if sharding.stage >= split_from:
            state[part] = state[part] * (1 / sharding.processes)
    if sharding.offload != "none":
        state["optimizer"] = 0
        if sharding.engine == "fsdp":  # which offloads weights and gradients, too
            state["weights"] = 0
            state["gradients"] = 0
    return state


def _values_by_shape(shape: Shape, step: Step) -> list[int]:
    """Numbers in all trained matrices of a shape, for each shape."""
    matrices = step.trained.matrices(shape)
    return [rows * columns * count for (rows, columns), count in matrices.items()]


def _held_in_4bit(shape: Shape, step: Step) -> int:
    """Weights of the blocks' linear layers, where they are."""
    if not step.load_in_4bit:
        return 0
    layers = [*shape.linear_layers().values(), *shape.idle_layers().values()]
    return shape.n_layer * sum(inputs * outputs for inputs, outputs in layers)


class _Pass(NamedTuple):
    """What several moments of a forward and backward pass share, in bytes."""

    tokens: int  # of the micro-batch; the one number that is no bytes
    inside: int  # a vector of each token inside a block
    between: int  # and between blocks
    kept: int  # of all blocks, for the backward pass
    copies: "_Copies"
    gathered: int  # weights of other processes, at the ends of the model
    gathered_inside: int  # and inside a block
    bucket: int  # DeepSpeed's, for gradients on the way
    output_gradient: int  # of the output embedding


def _moments(
    shape: Shape, weights: Weights, step: Step, sharding: Sharding, gradients: float
) -> list[Bytes]:
    """What comes on top of the state, by part, at each of the moments that `step_memory_bytes`
    names.
    """
    sizes = _Vector.of(step, sharding)
    tokens = step.batch_size * step.max_length
    blocks = blocks_in_training(shape, step.trained, step.activation_checkpointing)
    trains_output = step.trained.output_embedding(shape)
    shared = _Pass(
        tokens,
        inside=tokens * shape.n_embd * sizes.inside,
        between=tokens * shape.n_embd * sizes.between,
        kept=_kept_by_all(shape, step, sizes, blocks),
        copies=_copies(shape, step, sharding, blocks),
        gathered=gathered_bytes(weights, step, sharding, 2),
        gathered_inside=gathered_bytes(weights, step, sharding, FSDP_BLOCKS),
        bucket=bucket_bytes(step, sharding),
        output_gradient=4 * shape.vocab_size * shape.n_embd if trains_output else 0,
    )
    return [
        _loss(shape, step, shared),
        _backward_of_loss(shape, step, shared),
        _backward_of_last_mlp(shape, step, sharding, blocks[-1], shared),
        _end_of_backward(shape, step, gradients, shared),
        muon_moment(weights, step, gradients),
        _evaluation(shape, step),
    ]


def _loss(shape: Shape, step: Step, shared: _Pass) -> Bytes:
    """Logits as they come, in float32, and their log-probabilities."""
    return {
        "activations": shared.kept + shared.inside + 2 * shared.between,
        "logits": shared.tokens * shape.vocab_size * (10 if step.bf16 else 8),
        "bf16 copies": shared.copies.output + shared.copies.blocks,
        "communication": shared.gathered,
    }


def _backward_of_loss(shape: Shape, step: Step, shared: _Pass) -> Bytes:
    """Log-probabilities and two gradients, in float32."""
    copied_blocks = 0 if step.activation_checkpointing else shared.copies.blocks
    return {
        "activations": shared.kept + shared.inside + shared.between,
        "logits": shared.tokens * shape.vocab_size * 12,
        "bf16 copies": shared.copies.output + copied_blocks,
        "communication": shared.gathered,
    }


def _backward_of_last_mlp(
    shape: Shape, step: Step, sharding: Sharding, last: Block, shared: _Pass
) -> Bytes:
    """The first block on the way back: with checkpointing it is there once more, and its copies
    alone.
    """
    sizes = _Vector.of(step, sharding)
    block_again = shared.between
    copied_blocks = shared.copies.blocks
    if step.activation_checkpointing:
        block_again = shared.tokens * _kept(shape, step, sizes, last)
        copied_blocks = shared.copies.last
    # Its gradients are five vectors, and a sixth where the residual's must be cast.
    vectors = 1 if sizes.inside == sizes.between else 2
    before_activation = shared.tokens * shape.inner * sizes.mlp
    adapters = shared.tokens * _adapter_gradients(step, last)
    mlp_gradient = 4 * shape.n_embd * shape.inner if last.mlp_proj.trained else 0
    activations = shared.kept + block_again + vectors * shared.inside + before_activation
    return {
        "activations": activations + _unpacked(shape, step) + adapters,
        "gradients": shared.output_gradient + mlp_gradient,
        "bf16 copies": shared.copies.output + copied_blocks,
        "communication": shared.bucket + shared.gathered_inside,
    }


def _end_of_backward(shape: Shape, step: Step, gradients: float, shared: _Pass) -> Bytes:
    """Every gradient is there, that of the tied embedding twice, and little else."""
    tied_again = shared.output_gradient if shape.tie_word_embeddings else 0
    return {
        "activations": 2 * shared.between + _unpacked(shape, step),
        "gradients": gradients + tied_again,
        "communication": shared.bucket + shared.gathered,
    }


def muon_moment(weights: Weights, step: Step, gradients: float) -> Bytes:
    """All gradients, and what makes the matrices of one shape orthogonal at once: they in float32,
    and before and after an iteration, with its two squares, in the type of the products.
    """
    largest = weights.largest_matrices if step.muon else 0
    return {"gradients": gradients, "optimizer": (4 + 4 * step.width) * largest}


def _evaluation(shape: Shape, step: Step) -> Bytes:
    """Logits of a whole batch, in bf16 also in float32, and one block's vectors."""
    tokens = step.eval_batch_size * step.max_length
    return {
        "activations": tokens * (4 * shape.n_embd + shape.inner * step.width),
        "logits": tokens * shape.vocab_size * (6 if step.bf16 else 4),
    }


def _kept_by_all(shape: Shape, step: Step, sizes: "_Vector", blocks: Sequence[Block]) -> int:
    """Bytes that the backward pass needs of all blocks, and of the embeddings' dropout; with
    checkpointing of the blocks only what they read.
    """
    tokens = step.batch_size * step.max_length
    if step.activation_checkpointing:
        kept = tokens * shape.n_embd * sizes.between * len(blocks)
    else:
        kept = tokens * sum(_kept(shape, step, sizes, block) for block in blocks)
    needs_gradient = step.trained.embeddings or step.activation_checkpointing
    if shape.embd_pdrop and needs_gradient:
        kept += tokens * shape.n_embd * (sizes.between if step.on_cpu else MASK_BYTES)
    return kept


class _Vector(NamedTuple):
    """Bytes of a value: inside a block, between blocks, and before the MLP's activation."""

    inside: int
    between: int
    mlp: int

    @classmethod
    def of(cls, step: Step, sharding: Sharding) -> "_Vector":
        """Autocast keeps what is between blocks in float32; FSDP and DeepSpeed run all in the
        compute type. 4-bit layers answer in the type of what they read.
        """
        between = step.width if sharding.engine in ("fsdp", "deepspeed") else 4
        return cls(step.width, between, between if step.load_in_4bit else step.width)


def _kept(shape: Shape, step: Step, sizes: _Vector, block: Block) -> int:
    """Bytes per token that the backward pass needs of a block."""
    n = shape.n_embd
    kept = sum(_kept_by_adapter(step, sizes, layer) for layer in block if layer.adapted)
    for first, second in ((block.c_attn, block.c_proj), (block.c_fc, block.mlp_proj)):
        if first.input_gradient:  # the layer norm's input, mean and deviation
            kept += n * sizes.between + 8
        if first.keeps_input:
            kept += n * sizes.inside
        if second.output_gradient and shape.resid_pdrop:
            kept += n * (sizes.inside if step.on_cpu else MASK_BYTES)
    kept += _kept_by_attention(shape, step, sizes, block)
    by_result = shape.activation_function in KEPT_BY_RESULT
    if block.c_fc.output_gradient and not by_result:  # what the activation read
        kept += shape.inner * sizes.mlp
    if block.mlp_proj.keeps_input or (block.c_fc.output_gradient and by_result):  # what it gave
        kept += shape.inner * sizes.inside
    return kept


def _kept_by_attention(shape: Shape, step: Step, sizes: _Vector, block: Block) -> int:
    """Bytes per token: query, key, value, the result, a number per head, and the mask that keeps
    documents apart.
    """
    result = shape.n_embd * sizes.inside
    if not block.c_attn.output_gradient:
        return result if block.c_proj.keeps_input else 0
    if step.on_cpu and shape.attn_pdrop:
        # Not fused: the weights, their dropout and its result, all in float32.
        unfused = 4 * 3 * (shape.n_embd + shape.n_head * step.max_length)
        return unfused + (result if block.c_proj.keeps_input else 0)
    # peft makes a copy for the adapter.
    is_copied = block.c_proj.adapted and (step.bf16 or step.lora_dropout > 0)
    vectors = 5 if is_copied else 4
    mask = step.max_length * step.width if step.masked else 0
    return vectors * result + 4 * shape.n_head + mask


def _kept_by_adapter(step: Step, sizes: _Vector, layer: Layer) -> int:
    """Bytes per token: what its second matrix reads, and where its dropout left values out."""
    mask = layer.inputs * (4 if step.on_cpu else MASK_BYTES) if step.lora_dropout else 0
    return step.lora_r * sizes.inside + mask


def _adapter_gradients(step: Step, block: Block) -> int:
    """Bytes per token on the way back through the MLP's adapters: in float32, which they read, and
    in bf16 also in the type of the layer.
    """
    if not (block.c_fc.adapted or block.mlp_proj.adapted):
        return 0
    return block.mlp_proj.inputs * (6 if step.bf16 else 4)


class _Copies(NamedTuple):
    """Bytes of the two-byte copies of weights that autocast makes and the backward pass needs
    again.
    """

    output: int
    blocks: int
    last: int  # of the last block alone


def _copies(shape: Shape, step: Step, sharding: Sharding, blocks: Sequence[Block]) -> _Copies:
    """Those of 4-bit layers are made anew (`_unpacked`)."""
    if not step.bf16 or sharding.engine not in ("none", "ddp"):
        return _Copies(0, 0, 0)
    output = 2 * shape.vocab_size * shape.n_embd
    if step.load_in_4bit:
        return _Copies(output, 0, 0)
    by_block = [_copied_by_block(block) for block in blocks]
    return _Copies(output, sum(by_block), by_block[-1])


def _copied_by_block(block: Block) -> int:
    needed = [layer for layer in block if layer.trained or layer.input_gradient]
    return sum(2 * layer.inputs * layer.outputs for layer in needed)


def _unpacked(shape: Shape, step: Step) -> int:
    """Bytes of the largest 4-bit layer while it computes: float32, by autocast bf16 from that."""
    if not step.load_in_4bit:
        return 0
    largest = max(inputs * outputs for inputs, outputs in shape.linear_layers().values())
    return largest * (6 if step.bf16 else 4)


def bucket_bytes(step: Step, sharding: Sharding) -> int:
    """DeepSpeed's, for gradients on the way."""
    return DEEPSPEED_BUCKET * step.width if sharding.engine == "deepspeed" else 0


def gathered_bytes(weights: Weights, step: Step, sharding: Sharding, blocks: int) -> int:
    """Weights of other processes at hand: of FSDP the embeddings and some blocks; ZeRO-3 keeps all
    up to its limit, gathered, arriving and as gradients.
    """
    if sharding.engine == "fsdp":
        limited = min(blocks, weights.blocks + 2)
        blocks = weights.blocks if sharding.stage == 2 else limited
        return step.width * (weights.embeddings + blocks * weights.block)
    if sharding.engine == "deepspeed" and sharding.stage == 3:
        return 3 * step.width * min(weights.parameters, ZERO3_LIVE)
    return 0

"""How much memory a training step takes, by closed formulas; needs neither torch nor the model."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from hfscale.planning.flops import Block, Layer, Shape, Trained, blocks_in_training

# Values DeepSpeed reduces at a time by default: a buffer made in every backward pass
DEEPSPEED_BUCKET = 500_000_000
ZERO3_LIVE = 1_000_000_000  # weights that ZeRO-3 keeps gathered by default: all of a smaller model
MASK_BYTES = 1  # of a value that dropout left out or not, on a GPU; on a CPU it is a value itself
KEPT_BY_RESULT = (
    "relu",
    "tanh",
)  # activations whose backward pass needs what they gave, not what they read
# Blocks in flight: one used, one gathered ahead, their copies and gradients on the way (measured)
FSDP_BLOCKS = 5


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
    deepspeed, fsdp = (launch_config.get(f"{name}_config") or {} for name in ("deepspeed", "fsdp"))
    if launch_config.get("distributed_type") == "DEEPSPEED":
        return Sharding(
            "deepspeed",
            deepspeed.get("zero_stage", 2),
            processes,
            deepspeed.get("offload_optimizer_device", "none"),
        )
    if launch_config.get("distributed_type") == "FSDP":
        splits_weights = _is_true(fsdp.get("fsdp_reshard_after_forward", True))
        offloads = _is_true(fsdp.get("fsdp_offload_params", False))
        return Sharding(
            "fsdp", 3 if splits_weights else 2, processes, "cpu" if offloads else "none"
        )
    return Sharding("ddp" if processes > 1 else "none", 0, processes)


def _is_true(value: Any) -> bool:
    """accelerate reads true and "true" alike."""
    return str(value).lower() == "true"


def step_memory_bytes(shape: Shape, step: Step, sharding: Sharding) -> dict[str, int]:
    """Bytes per process by part at the fullest moment of training with AdamW and fused attention.

    The moments compared: the end of the forward pass, the loss, the backward pass of the last
    block, the end of the backward pass, an evaluation batch. Activations are what autograd keeps,
    counted operation by operation and found again in torch's allocator (docs/planning.md).
    Allocator, libraries and device contexts come on top.
    """
    state = _state(shape, step, sharding)
    gradients = state.pop("gradients")
    moments = _moments(shape, step, sharding, gradients)
    if step.accumulates:  # the gradients of the passes before are there all along
        moments = [
            {**moment, "gradients": max(gradients, moment.get("gradients", 0))}
            for moment in moments
        ]
    fullest = max(moments, key=lambda moment: sum(moment.values()))
    parts = (
        "weights",
        "bf16 copies",
        "gradients",
        "optimizer",
        "activations",
        "logits",
        "communication",
    )
    return {part: int(state.get(part, 0) + fullest.get(part, 0)) for part in parts}


def _state(shape: Shape, step: Step, sharding: Sharding) -> dict[str, float]:
    """What lies in memory from step to step. Outside DeepSpeed weights, gradients and both moments
    are float32: 16 bytes a parameter. DeepSpeed trains a copy in the compute type and keeps a
    float32 master: 12 bytes in `optimizer`.
    """
    deepspeed, stage = sharding.engine == "deepspeed", sharding.stage
    optimizer_part, gradients_part, weights_part = (
        1 / sharding.processes if stage > part else 1 for part in range(3)
    )
    value = step.width if deepspeed else 4
    adapters = shape.lora_parameters(*step.trained)
    trained = step.trained.parameters(shape)
    if not deepspeed:  # which keeps state for all of them
        trained -= step.trained.idle_parameters(shape)
    weights = value * (shape.parameters() + adapters) - _saved_by_4bit(shape, step, value)
    on_device = 0 if sharding.offload != "none" else 1
    whole = sharding.engine == "fsdp" and not on_device  # FSDP offloads weights and gradients too
    master = 4 if deepspeed else 0
    return {
        "weights": 0 if whole else weights * weights_part,
        "gradients": 0 if whole else value * trained * gradients_part,
        "optimizer": on_device * (master + step.optimizer_bytes) * trained * optimizer_part,
        "communication": 4 * trained
        if sharding.engine == "ddp"
        else 0,  # DDP's buckets: one more copy
    }


def _saved_by_4bit(shape: Shape, step: Step, value: int) -> float:
    """Bytes: the blocks' linear layers take 4 bits, and scales: 8 bits for 64 weights, 32 bits for
    256 of those.
    """
    if not step.load_in_4bit:
        return 0
    layers = [*shape.linear_layers().values(), *shape.idle_layers().values()]
    linear = shape.n_layer * sum(inputs * outputs for inputs, outputs in layers)
    return linear * (value - 4.127 / 8)


def _moments(
    shape: Shape, step: Step, sharding: Sharding, gradients: float
) -> list[dict[str, float]]:
    """What comes on top of the state, by part, at each of the moments that `step_memory_bytes`
    names.
    """
    n, words = shape.n_embd, shape.vocab_size
    tokens, eval_tokens = (
        rows * step.max_length for rows in (step.batch_size, step.eval_batch_size)
    )
    sizes = _Vector.of(step, sharding)
    inside, between = tokens * n * sizes.inside, tokens * n * sizes.between
    wide = tokens * shape.inner * sizes.mlp
    blocks = blocks_in_training(shape, step.trained, step.activation_checkpointing)
    kept_by_block = [tokens * _kept(shape, step, sizes, block) for block in blocks]
    again = step.activation_checkpointing  # only the blocks' inputs are kept
    kept = between * len(blocks) if again else sum(kept_by_block)
    if shape.embd_pdrop and (step.trained.embeddings or again):
        kept += tokens * n * (sizes.between if step.on_cpu else MASK_BYTES)
    copies = _copies(shape, step, sharding, blocks)
    unpacked = _unpacked(shape, step)
    bucket = DEEPSPEED_BUCKET * step.width if sharding.engine == "deepspeed" else 0
    few, many = (_gathered(shape, step, sharding, count) for count in (2, FSDP_BLOCKS))
    output_gradient = 4 * words * n if step.trained.output_embedding(shape) else 0
    mlp_gradient = 4 * n * shape.inner if blocks[-1].mlp_proj.trained else 0
    tied_again = output_gradient if shape.tie_word_embeddings else 0
    return [
        # The loss is computed: logits as they come, in float32, and their log-probabilities.
        {
            "activations": kept + inside + 2 * between,
            "logits": tokens * words * (10 if step.bf16 else 8),
            "bf16 copies": copies.output + copies.blocks,
            "communication": few,
        },
        # Its backward pass begins: log-probabilities and two gradients, in float32.
        {
            "activations": kept + inside + between,
            "logits": tokens * words * 12,
            "bf16 copies": copies.output + (0 if again else copies.blocks),
            "communication": few,
        },
        # Backward has reached the last block's MLP; with checkpointing the block is there once
        # more. Its gradients are five vectors, and a sixth where the residual's must be cast.
        {
            "activations": kept
            + (kept_by_block[-1] if again else between)
            + (1 if sizes.inside == sizes.between else 2) * inside
            + wide
            + unpacked
            + tokens * _adapter_gradients(step, blocks[-1]),
            "gradients": output_gradient + mlp_gradient,
            "bf16 copies": copies.output + (copies.last if again else copies.blocks),
            "communication": bucket + many,
        },
        # Every gradient is there, that of the tied embedding twice, and little else.
        {
            "activations": 2 * between + unpacked,
            "gradients": gradients + tied_again,
            "communication": bucket + few,
        },
        # Evaluation: logits of a whole batch, in bf16 also in float32, and one block's vectors.
        {
            "activations": eval_tokens * (4 * n + shape.inner * step.width),
            "logits": eval_tokens * words * (6 if step.bf16 else 4),
        },
    ]


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
    gives = shape.activation_function in KEPT_BY_RESULT
    if block.c_fc.output_gradient and not gives:
        kept += shape.inner * sizes.mlp
    if block.mlp_proj.keeps_input or (block.c_fc.output_gradient and gives):
        kept += shape.inner * sizes.inside
    return kept


def _kept_by_attention(shape: Shape, step: Step, sizes: _Vector, block: Block) -> int:
    """Bytes per token: query, key, value, the result, a number per head, and the mask that keeps
    documents apart.
    """
    result = shape.n_embd * sizes.inside
    if not block.c_attn.output_gradient:
        return result if block.c_proj.keeps_input else 0
    if (
        step.on_cpu and shape.attn_pdrop
    ):  # not fused: the weights, their dropout and its result, all in float32
        own = 4 * 3 * (shape.n_embd + shape.n_head * step.max_length)
        return own + (result if block.c_proj.keeps_input else 0)
    read_again = block.c_proj.adapted and (
        step.bf16 or step.lora_dropout > 0
    )  # peft makes a copy for the adapter
    mask = step.max_length * step.width if step.masked else 0
    return (5 if read_again else 4) * result + 4 * shape.n_head + mask


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
    by_block = [
        sum(
            2 * layer.inputs * layer.outputs
            for layer in block
            if layer.trained or layer.input_gradient
        )
        for block in blocks
    ]
    return _Copies(output, sum(by_block), by_block[-1])


def _unpacked(shape: Shape, step: Step) -> int:
    """Bytes of the largest 4-bit layer while it computes: float32, by autocast bf16 from that."""
    if not step.load_in_4bit:
        return 0
    largest = max(inputs * outputs for inputs, outputs in shape.linear_layers().values())
    return largest * (6 if step.bf16 else 4)


def _gathered(shape: Shape, step: Step, sharding: Sharding, blocks: int) -> int:
    """Weights of other processes at hand: of FSDP the embeddings and some blocks; ZeRO-3 keeps all
    up to its limit, gathered, arriving and as gradients.
    """
    if sharding.engine == "fsdp":
        blocks = shape.n_layer if sharding.stage == 2 else min(blocks, shape.n_layer + 2)
        return step.width * (shape.embedding_parameters() + blocks * shape.block_parameters())
    zero3 = sharding.engine == "deepspeed" and sharding.stage == 3
    return 3 * step.width * min(shape.parameters(), ZERO3_LIVE) if zero3 else 0

"""How much memory a training step takes, by closed formulas; needs neither torch nor the model."""

from typing import Any, NamedTuple

from hfscale.scaling.flops import Shape

DEEPSPEED_BUCKET = 500_000_000  # values DeepSpeed reduces at a time by default: a buffer made in every backward pass
ZERO3_LIVE = 1_000_000_000  # weights that ZeRO-3 keeps gathered by default: all of a smaller model
FSDP_BLOCKS = 5  # blocks in flight: one used, one gathered ahead, their copies and gradients on the way (measured)


class Step(NamedTuple):
    """What one process computes at a time."""

    batch_size: int
    max_length: int
    eval_batch_size: int = 0
    bf16: bool = False
    activation_checkpointing: bool = False
    accumulates: bool = False
    masked: bool = True  # documents of a row do not attend to each other
    lora_rank: int = 0
    load_in_4bit: bool = False


class Sharding(NamedTuple):
    """How processes share a model: stage 1 splits the optimizer's state, 2 gradients too, 3 weights too."""

    engine: str = "none"  # none, ddp, fsdp, deepspeed
    stage: int = 0
    processes: int = 1
    offload: str = "none"  # none, cpu or nvme: where the optimizer's state lies


def sharding_of(launch_config: dict[str, Any], processes: int) -> Sharding:
    """What the content of an accelerate config (its YAML) means for this many processes."""
    deepspeed, fsdp = (launch_config.get(f"{name}_config") or {} for name in ("deepspeed", "fsdp"))
    if launch_config.get("distributed_type") == "DEEPSPEED":
        return Sharding("deepspeed", deepspeed.get("zero_stage", 2), processes,
                        deepspeed.get("offload_optimizer_device", "none"))
    if launch_config.get("distributed_type") == "FSDP":
        return Sharding("fsdp", 3 if fsdp.get("fsdp_reshard_after_forward", True) else 2, processes,
                        "cpu" if fsdp.get("fsdp_offload_params") else "none")
    return Sharding("ddp" if processes > 1 else "none", 0, processes)


def step_memory_bytes(shape: Shape, step: Step, sharding: Sharding) -> dict[str, int]:
    """Bytes per process by part at the fullest moment of training with AdamW, dropout 0 and fused attention.

    The moments compared: the end of the forward pass, the loss, the backward pass of the last block, the end of the
    backward pass, an evaluation batch. Activations are what autograd keeps, counted operation by operation and found
    again in torch's allocator (docs/planning.md). Allocator, libraries and device contexts come on top.
    """
    state = _state(shape, step, sharding)
    gradients = state.pop("gradients")
    moments = [_forward(shape, step, sharding, at_loss=False), _forward(shape, step, sharding, at_loss=True),
               _last_block(shape, step, sharding), _end(shape, step, sharding, gradients), _evaluation(shape, step)]
    if step.accumulates:  # the gradients of the passes before are there all along
        moments = [{**moment, "gradients": max(gradients, moment.get("gradients", 0))} for moment in moments]
    fullest = max(moments, key=lambda moment: sum(moment.values()))
    parts = ("weights", "bf16 copies", "gradients", "optimizer", "activations", "logits", "communication")
    return {part: int(state.get(part, 0) + fullest.get(part, 0)) for part in parts}


def _state(shape: Shape, step: Step, sharding: Sharding) -> dict[str, float]:
    """What lies in memory from step to step. Outside DeepSpeed weights, gradients and both moments are float32: 16
    bytes a parameter. DeepSpeed trains a copy in the compute type and keeps a float32 master: 12 bytes in `optimizer`.
    """
    deepspeed, stage = sharding.engine == "deepspeed", sharding.stage
    split = [1 / sharding.processes if stage > part else 1 for part in range(3)]  # optimizer, gradients, weights
    value = _width(step) if deepspeed else 4
    adapters = shape.lora_parameters(step.lora_rank)
    trained = adapters or shape.parameters()
    # 4 bits, and scales: 8 bits for 64 weights, 32 bits for 256 of those.
    linear = 12 * shape.n_layer * shape.n_embd**2 if step.load_in_4bit else 0
    weights = value * (shape.parameters() + adapters) - linear * (value - 4.127 / 8)
    on_device = 0 if sharding.offload != "none" else 1
    whole = sharding.engine == "fsdp" and not on_device  # FSDP offloads weights and gradients too
    return {"weights": 0 if whole else weights * split[2], "gradients": 0 if whole else value * trained * split[1],
            "optimizer": on_device * (12 if deepspeed else 8) * trained * split[0],
            "communication": 4 * trained if sharding.engine == "ddp" else 0}  # DDP's buckets: one more copy


def _width(step: Step) -> int:
    return 2 if step.bf16 else 4


def _residual_width(step: Step, sharding: Sharding) -> int:
    """Bytes of a value between blocks: autocast keeps it in float32, FSDP and DeepSpeed run all in bf16."""
    return _width(step) if sharding.engine in ("fsdp", "deepspeed") else 4


def _mlp_width(step: Step, sharding: Sharding) -> int:
    """Bytes of a value before the activation: 4-bit layers answer in the type of what they read, a norm's output."""
    return _residual_width(step, sharding) if step.load_in_4bit else _width(step)


def _unpacked(shape: Shape, step: Step) -> int:
    """The largest layer's weights while it computes: in 4 bits they are made float32, by autocast bf16 from that."""
    return 4 * shape.n_embd**2 * (6 if step.bf16 else 4) if step.load_in_4bit else 0


def _block(shape: Shape, step: Step, sharding: Sharding) -> int:
    """Kept of one block: both layer norms' inputs and outputs, query, key, value, attention's result, the MLP before
    and after its activation (16 vectors a token), a few numbers per head, and the mask that keeps documents apart."""
    width = _width(step)
    vectors = shape.n_embd * (2 * _residual_width(step, sharding) + 10 * width + 4 * _mlp_width(step, sharding))
    mask = step.max_length * width if step.masked else 0
    return step.batch_size * step.max_length * (vectors + 4 * shape.n_head + 16 + mask)


def _copies(shape: Shape, step: Step, sharding: Sharding, blocks: int) -> int:
    """Autocast's bf16 copies of the weights of some blocks and of the output layer, which backward needs again (those
    of 4-bit layers are made anew)."""
    autocast = step.bf16 and sharding.engine in ("none", "ddp")
    blocks = 0 if step.load_in_4bit else blocks
    return 2 * (blocks * 12 * shape.n_embd**2 + shape.vocab_size * shape.n_embd) if autocast else 0


def _kept(shape: Shape, step: Step, sharding: Sharding) -> int:
    """Activations of all blocks: with checkpointing their inputs alone."""
    if not step.activation_checkpointing:
        return shape.n_layer * _block(shape, step, sharding)
    width = _residual_width(step, sharding)
    return shape.n_layer * step.batch_size * step.max_length * shape.n_embd * width


def _forward(shape: Shape, step: Step, sharding: Sharding, *, at_loss: bool) -> dict[str, int]:
    """When the loss is computed: the logits as they come, in float32, and their log-probabilities; when its backward
    pass begins: the log-probabilities and two gradients in float32."""
    tokens, width, residual = step.batch_size * step.max_length, _width(step), _residual_width(step, sharding)
    final = tokens * shape.n_embd * (residual + width + (0 if at_loss else residual))
    per_logit = 12 if at_loss else 10 if step.bf16 else 8
    blocks = 0 if at_loss and step.activation_checkpointing else shape.n_layer
    return {"activations": _kept(shape, step, sharding) + final, "logits": tokens * shape.vocab_size * per_logit,
            "bf16 copies": _copies(shape, step, sharding, blocks),
            "communication": _gathered(shape, step, sharding, 2)}


def _last_block(shape: Shape, step: Step, sharding: Sharding) -> dict[str, int]:
    """Backward has reached the last block's MLP: with checkpointing the block is there once more."""
    tokens, width, residual = step.batch_size * step.max_length, _width(step), _residual_width(step, sharding)
    again = step.activation_checkpointing
    one = _block(shape, step, sharding) - tokens * shape.n_embd * residual if again else 0
    mlp = 4 * _mlp_width(step, sharding)
    passing = tokens * shape.n_embd * (residual + (width if width != residual else 0) + mlp + width)
    first = 0 if step.lora_rank else 4 * (shape.vocab_size * shape.n_embd + 4 * shape.n_embd**2)
    bucket = DEEPSPEED_BUCKET * width if sharding.engine == "deepspeed" else 0
    return {"activations": _kept(shape, step, sharding) + one + passing + _unpacked(shape, step), "gradients": first,
            "bf16 copies": _copies(shape, step, sharding, 1 if again else shape.n_layer),
            "communication": bucket + _gathered(shape, step, sharding, FSDP_BLOCKS)}


def _end(shape: Shape, step: Step, sharding: Sharding, gradients: float) -> dict[str, float]:
    """Every gradient is there, that of the tied embedding twice, and little else."""
    twice = 0 if step.lora_rank else 4 * shape.vocab_size * shape.n_embd
    passing = 2 * step.batch_size * step.max_length * shape.n_embd * _residual_width(step, sharding)
    bucket = DEEPSPEED_BUCKET * _width(step) if sharding.engine == "deepspeed" else 0
    return {"gradients": gradients + twice, "activations": passing + _unpacked(shape, step),
            "communication": bucket + _gathered(shape, step, sharding, 2)}


def _evaluation(shape: Shape, step: Step) -> dict[str, int]:
    """Logits of a whole batch, in bf16 also in float32, and one block's vectors."""
    tokens, width = step.eval_batch_size * step.max_length, _width(step)
    per_logit = 6 if step.bf16 else 4
    return {"logits": tokens * shape.vocab_size * per_logit, "activations": tokens * shape.n_embd * (4 + 4 * width)}


def _gathered(shape: Shape, step: Step, sharding: Sharding, blocks: int) -> int:
    """Weights of other processes at hand: of FSDP the embeddings and some blocks; ZeRO-3 keeps all up to its limit,
    gathered, arriving and as gradients."""
    width = _width(step)
    if sharding.engine == "fsdp":
        blocks = shape.n_layer if sharding.stage == 2 else min(blocks, shape.n_layer + 2)
        embeddings = (shape.vocab_size + shape.n_positions) * shape.n_embd
        return width * (embeddings + blocks * shape.block_parameters())
    zero3 = sharding.engine == "deepspeed" and sharding.stage == 3
    return 3 * width * min(shape.parameters(), ZERO3_LIVE) if zero3 else 0

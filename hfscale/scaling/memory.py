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
    moments = _moments(shape, step, sharding, gradients)
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


def _moments(shape: Shape, step: Step, sharding: Sharding, gradients: float) -> list[dict[str, float]]:
    """What comes on top of the state, by part, at each of the moments that `step_memory_bytes` names."""
    n, layers, words, width = shape.n_embd, shape.n_layer, shape.vocab_size, _width(step)
    tokens, eval_tokens = (rows * step.max_length for rows in (step.batch_size, step.eval_batch_size))
    # A vector for each token, inside a block and between blocks: autocast keeps the latter in float32, FSDP and
    # DeepSpeed run all in bf16.
    residual = width if sharding.engine in ("fsdp", "deepspeed") else 4
    inside, between = tokens * n * width, tokens * n * residual
    mlp = between if step.load_in_4bit else inside  # 4-bit layers answer in the type of what they read
    # Kept of one block: both layer norms' inputs and outputs, query, key, value, attention's result, the MLP before
    # and after its activation (16 vectors), a few numbers per head, and the mask that keeps documents apart.
    mask = step.max_length * width if step.masked else 0
    block = 10 * inside + 4 * mlp + 2 * between + tokens * (4 * shape.n_head + 16 + mask)
    again = step.activation_checkpointing  # only the blocks' inputs are kept
    kept = layers * (between if again else block)
    # Autocast's bf16 copies of weights, which backward needs again. Those of 4-bit layers are made anew, the largest
    # layer's while it computes: float32, by autocast bf16 from that.
    autocast = step.bf16 and sharding.engine in ("none", "ddp")
    block_copy, output_copy = (0 if step.load_in_4bit else 2 * 12 * n**2, 2 * words * n) if autocast else (0, 0)
    unpacked = 4 * n**2 * (6 if step.bf16 else 4) if step.load_in_4bit else 0
    bucket = DEEPSPEED_BUCKET * width if sharding.engine == "deepspeed" else 0
    few, many = (_gathered(shape, step, sharding, blocks) for blocks in (2, FSDP_BLOCKS))
    return [
        # The loss is computed: logits as they come, in float32, and their log-probabilities.
        {"activations": kept + inside + 2 * between, "logits": tokens * words * (10 if step.bf16 else 8),
         "bf16 copies": output_copy + layers * block_copy, "communication": few},
        # Its backward pass begins: log-probabilities and two gradients, in float32.
        {"activations": kept + inside + between, "logits": tokens * words * 12,
         "bf16 copies": output_copy + (0 if again else layers) * block_copy, "communication": few},
        # Backward has reached the last block's MLP; with checkpointing the block is there once more. Its gradients
        # are five vectors, and a sixth where the residual's must be cast.
        {"activations": kept + (block if again else between) + (1 if width == residual else 2) * inside + 4 * mlp
         + unpacked,
         "gradients": 0 if step.lora_rank else 4 * (words * n + 4 * n**2),
         "bf16 copies": output_copy + (1 if again else layers) * block_copy, "communication": bucket + many},
        # Every gradient is there, that of the tied embedding twice, and little else.
        {"activations": 2 * between + unpacked, "gradients": gradients + (0 if step.lora_rank else 4 * words * n),
         "communication": bucket + few},
        # Evaluation: logits of a whole batch, in bf16 also in float32, and one block's vectors.
        {"activations": eval_tokens * n * (4 + 4 * width), "logits": eval_tokens * words * (6 if step.bf16 else 4)},
    ]


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

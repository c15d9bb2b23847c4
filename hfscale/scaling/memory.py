"""How much memory a training step takes, by closed formulas; needs neither torch nor the model."""


def training_memory_bytes(*, parameters: int, n_layer: int, n_embd: int, vocab_size: int, batch_size: int,
                          max_length: int, bf16: bool, activation_checkpointing: bool = False) -> dict[str, int]:
    """Bytes per process by part, for float32 weights with AdamW, nothing sharded, attention scores not kept.

    16 bytes a parameter: weights 4, gradients 4, two moments 8. Activations: 34 values of `n_embd` per token and block
    in 2 bytes each, as counted by Korthikanti et al. 2022 (arXiv:2205.05198, section 4) without the attention scores;
    with checkpointing the block's input alone, plus one block recomputed. Logits: as computed, in float32 for the
    loss, and their gradient. An estimate: allocator, buffers and libraries come on top.
    """
    tokens, value_bytes = batch_size * max_length, 2 if bf16 else 4
    block = 17 * value_bytes * tokens * n_embd
    activations = n_layer * value_bytes * tokens * n_embd + block if activation_checkpointing else n_layer * block
    return {"weights": 4 * parameters, "gradients": 4 * parameters, "optimizer": 8 * parameters,
            "activations": activations, "logits": tokens * vocab_size * (value_bytes + 8)}

"""Parameters and floating-point operations of a GPT-2, exactly, from its sizes; needs neither torch nor the model."""

from typing import NamedTuple

TOKENS_PER_PARAMETER = 20  # compute-optimal: Hoffmann et al. 2022 (arXiv:2203.15556), approaches 1 and 2, table 3
PUBLISHED = {"gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024), "gpt2-large": (36, 20, 1280),
             "gpt2-xl": (48, 25, 1600), "distilgpt2": (6, 12, 768)}  # n_layer, n_head, n_embd of the Hub's models


class Shape(NamedTuple):
    """A GPT-2 in the names of GPT2Config; its MLP is four times as wide, its output embedding is the input's."""

    n_layer: int
    n_head: int
    n_embd: int
    n_positions: int
    vocab_size: int

    def block_parameters(self) -> int:
        """Of one block: attention 4 n^2, MLP 8 n^2, biases 9 n, two layer norms 4 n."""
        return 12 * self.n_embd**2 + 13 * self.n_embd

    def parameters(self) -> int:
        """Of the whole model, the tied embedding once."""
        embeddings = (self.vocab_size + self.n_positions) * self.n_embd
        return embeddings + self.n_layer * self.block_parameters() + 2 * self.n_embd

    def lora_parameters(self, rank: int) -> int:
        """Of adapters on all four linear layers of every block: rank x (inputs + outputs) each."""
        return self.n_layer * rank * (4 + 2 + 5 + 5) * self.n_embd


def forward_flops(shape: Shape, tokens: int, max_length: int) -> int:
    """Of reading `tokens` tokens in rows of `max_length`: two for each multiplication of the matrix products, the
    attention scores in full (not halved for causality), as `torch.utils.flop_counter` counts them; nothing else."""
    return tokens * (shape.n_layer * _block_flops(shape, max_length) + 2 * shape.vocab_size * shape.n_embd)


def training_flops(shape: Shape, tokens: int, max_length: int, *, activation_checkpointing: bool = False,
                   lora_rank: int = 0) -> int:
    """Of forward and backward passes: a product's gradients take two of its size. Checkpointing computes the blocks
    once more, but for the MLP's second layer, whose result the backward pass does not use; frozen weights (LoRA) need
    no gradient of their own, adapters on all linear layers do."""
    flops = 3 * forward_flops(shape, tokens, max_length)
    if activation_checkpointing:
        flops += tokens * shape.n_layer * (_block_flops(shape, max_length) - 2 * 4 * shape.n_embd**2)
    if lora_rank:
        frozen = shape.n_layer * 12 * shape.n_embd**2 + shape.vocab_size * shape.n_embd
        flops += tokens * (6 * shape.lora_parameters(lora_rank) - 2 * frozen)
    return flops


def _block_flops(shape: Shape, max_length: int) -> int:
    """Per token: linear layers with 12 n^2 weights; scores and weighted values over the whole row."""
    return 2 * 12 * shape.n_embd**2 + 2 * 2 * max_length * shape.n_embd

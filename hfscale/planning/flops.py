"""Parameters and floating-point operations of a GPT-2, exactly, from its sizes; needs neither torch
nor the model.
"""

from collections import Counter
from typing import NamedTuple

# Compute-optimal: Hoffmann et al. 2022 (arXiv:2203.15556), approaches 1 and 2, table 3.
TOKENS_PER_PARAMETER = 20
# n_layer, n_head, n_embd of the Hub's models.
PUBLISHED = {
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
    "distilgpt2": (6, 12, 768),
}
# Layers whose weight holds several matrices side by side, by the end of their names.
# GPT-2's query, key and value; of gated MLPs and experts the gate and what it lets through.
FUSED = {"c_attn": 3, "gate_up_proj": 2}
# Layers of a block that read the residual stream, and that are added to it.
READS_RESIDUAL = ("attn.c_attn", "mlp.c_fc")
ADDS_TO_RESIDUAL = ("attn.c_proj", "mlp.c_proj")


class Shape(NamedTuple):
    """A GPT-2 in the names of GPT2Config: all that changes its parameters, its FLOPs or its
    memory.
    """

    n_layer: int
    n_head: int
    n_embd: int
    n_positions: int
    vocab_size: int
    n_inner: int | None = None  # width inside the MLP; None: four times n_embd
    tie_word_embeddings: bool = True  # the output embedding is the input's
    add_cross_attention: bool = False  # without an encoder: weights that take no part
    resid_pdrop: float = 0.0
    embd_pdrop: float = 0.0
    attn_pdrop: float = 0.0
    activation_function: str = "gelu_pytorch_tanh"

    @property
    def inner(self) -> int:
        """Width inside the MLP."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear layer of a block that reads text, by name, in order."""
        n = self.n_embd
        return {
            "attn.c_attn": (n, 3 * n),
            "attn.c_proj": (n, n),
            "mlp.c_fc": (n, self.inner),
            "mlp.c_proj": (self.inner, n),
        }

    def idle_layers(self) -> dict[str, tuple[int, int]]:
        """Those of the cross-attention, which reads an encoder and is passed over without one."""
        n = self.n_embd
        names = {
            "crossattention.c_attn": (n, 2 * n),
            "crossattention.q_attn": (n, n),
            "crossattention.c_proj": (n, n),
        }
        return names if self.add_cross_attention else {}

    def block_parameters(self) -> int:
        """Of one block: matrices and biases of its linear layers, and two layer norms (three with
        cross-attention).
        """
        layers = [*self.linear_layers().values(), *self.idle_layers().values()]
        linear = sum(inputs * outputs + outputs for inputs, outputs in layers)
        norms = 3 if self.add_cross_attention else 2
        return linear + norms * 2 * self.n_embd

    def embedding_parameters(self) -> int:
        """Of token and position embeddings, and of an output embedding of its own."""
        words = self.vocab_size if self.tie_word_embeddings else 2 * self.vocab_size
        return (words + self.n_positions) * self.n_embd

    def parameters(self) -> int:
        """Of the whole model, a tied embedding once."""
        final_norm = 2 * self.n_embd
        return self.embedding_parameters() + self.n_layer * self.block_parameters() + final_norm

    def lora_parameters(
        self, rank: int, target_modules: tuple[str, ...] = (), freeze_layers: int = 0
    ) -> int:
        """Of adapters: rank x (inputs + outputs) of each linear layer that has one (see
        `Trained`).
        """
        trained = Trained(rank, target_modules, freeze_layers)
        layers = {**self.linear_layers(), **self.idle_layers()}
        parameters = 0
        for block in range(self.n_layer):
            for name, (inputs, outputs) in layers.items():
                if trained.adapts(block, name):
                    parameters += rank * (inputs + outputs)
        return parameters


class Trained(NamedTuple):
    """Which weights of a model are trained, in the names of finetune's arguments."""

    lora_r: int = 0  # 0: no adapters, the weights themselves
    target_modules: tuple[str, ...] = ()  # ends of names; none: all linear layers of the blocks
    freeze_layers: int = 0

    def adapts(self, block: int, name: str) -> bool:
        """Whether this layer of this block (from 0) has an adapter."""
        if not self.lora_r or block < self.freeze_layers:
            return False
        if not self.target_modules:
            return True
        endings = tuple(f".{end}" for end in self.target_modules)
        return f".transformer.h.{block}.{name}".endswith(endings)

    def trains(self, block: int) -> bool:
        """Whether this block's own weights are trained."""
        return not self.lora_r and block >= self.freeze_layers

    @property
    def embeddings(self) -> bool:
        """Whether the input embeddings are trained."""
        return not self.lora_r and not self.freeze_layers

    def output_embedding(self, shape: Shape) -> bool:
        """Whether the output embedding is trained: one of its own is never frozen by
        `freeze_layers`.
        """
        if self.embeddings:
            return True
        return not self.lora_r and not shape.tie_word_embeddings

    def parameters(self, shape: Shape) -> int:
        """How many numbers are trained, those included that never get a gradient."""
        if self.lora_r:
            return shape.lora_parameters(*self)
        if not self.freeze_layers:
            return shape.parameters()
        blocks = (shape.n_layer - self.freeze_layers) * shape.block_parameters()
        final_norm = 2 * shape.n_embd
        output = 0 if shape.tie_word_embeddings else shape.vocab_size * shape.n_embd
        return blocks + final_norm + output

    def matrices(self, shape: Shape) -> dict[tuple[int, int], int]:
        """How many matrices of each shape (inputs, outputs) are trained inside the blocks; query,
        key and value are one each.
        """
        counts: Counter[tuple[int, int]] = Counter()
        for block in range(shape.n_layer):
            for name, (inputs, outputs) in shape.linear_layers().items():
                if self.adapts(block, name):
                    counts[inputs, self.lora_r] += 1
                    counts[self.lora_r, outputs] += 1
                elif self.trains(block):
                    num_matrices = FUSED.get(name.rpartition(".")[2], 1)
                    counts[inputs, outputs // num_matrices] += num_matrices
        return dict(counts)

    def idle_parameters(self, shape: Shape) -> int:
        """How many of them never get a gradient, so that AdamW keeps nothing for them: the
        cross-attention's.
        """
        if self.lora_r:
            without = shape._replace(add_cross_attention=False)
            return self.parameters(shape) - self.parameters(without)
        layers = shape.idle_layers()
        matrices = sum(inputs * outputs + outputs for inputs, outputs in layers.values())
        norm = 2 * shape.n_embd if layers else 0
        return (shape.n_layer - self.freeze_layers) * (matrices + norm)


class Layer(NamedTuple):
    """A linear layer in training."""

    inputs: int
    outputs: int
    trained: bool  # its own weights
    adapted: bool
    input_gradient: bool  # whether something before it is trained

    @property
    def keeps_input(self) -> bool:
        """Whether the backward pass needs what the layer read."""
        return self.trained or self.adapted

    @property
    def output_gradient(self) -> bool:
        """Whether a gradient passes through what the layer gave."""
        return self.trained or self.adapted or self.input_gradient

    def forward_flops(self, rank: int) -> int:
        """Per token: two for each multiplication, with its adapter's two products."""
        product = 2 * self.inputs * self.outputs
        if not self.adapted:
            return product
        return product + 2 * rank * (self.inputs + self.outputs)

    def backward_flops(self, rank: int) -> int:
        """Per token: a product's size for each gradient that is needed, of its weights and of its
        input.
        """
        product = 2 * self.inputs * self.outputs
        flops = product * (self.trained + self.input_gradient)
        if self.adapted:
            first_matrix = 2 * rank * self.inputs
            second_matrix = 2 * rank * self.outputs
            flops += first_matrix * (1 + self.input_gradient) + second_matrix * 2
        return flops


class Block(NamedTuple):
    """A transformer block in training: its linear layers, and what the gradient passes through."""

    c_attn: Layer
    c_proj: Layer
    c_fc: Layer
    mlp_proj: Layer

    @property
    def trains(self) -> bool:
        """Whether the backward pass enters the block at all."""
        return self.mlp_proj.output_gradient

    def forward_flops(self, max_length: int, rank: int) -> int:
        """Per token, with scores and weighted values over the whole row."""
        attention = 2 * 2 * max_length * self.c_proj.inputs
        return attention + sum(layer.forward_flops(rank) for layer in self)

    def backward_flops(self, max_length: int, rank: int) -> int:
        """Per token: of scores and weighted values two gradients each."""
        attention = 0
        if self.c_attn.output_gradient:
            attention = 2 * 2 * 2 * max_length * self.c_proj.inputs
        return attention + sum(layer.backward_flops(rank) for layer in self)

    def again_flops(self, max_length: int, rank: int, *, dropout: bool) -> int:
        """Per token, of computing the block once more: up to what the backward pass needs last,
        which is what the last product reads, or what a dropout after it left out.
        """
        if not self.trains:
            return 0
        flops = self.forward_flops(max_length, rank)
        if dropout:
            return flops
        last = self.mlp_proj
        last_inputs = rank if last.adapted else last.inputs
        return flops - 2 * last_inputs * last.outputs


def blocks_in_training(
    shape: Shape, trained: Trained, activation_checkpointing: bool = False
) -> list[Block]:
    """What is trained in each block, and where gradients go: back to the first trained weight, no
    further. With checkpointing upstream lets the embeddings' output ask for one, so that it goes
    through all blocks.
    """
    blocks = []
    # Whether the residual stream carries a gradient.
    reached = trained.embeddings or activation_checkpointing
    for block in range(shape.n_layer):
        layers: list[Layer] = []
        flows = reached
        for name, (inputs, outputs) in shape.linear_layers().items():
            if name in READS_RESIDUAL:  # through a layer norm, which is trained with the block
                flows = reached or trained.trains(block)
            layer = Layer(
                inputs, outputs, trained.trains(block), trained.adapts(block, name), flows
            )
            layers.append(layer)
            flows = layer.output_gradient
            if name in ADDS_TO_RESIDUAL:
                reached = reached or flows
        blocks.append(Block(*layers))
    return blocks


def forward_flops(shape: Shape, tokens: int, max_length: int) -> int:
    """Of reading `tokens` tokens in rows of `max_length`: two for each multiplication of the matrix
    products, the attention scores in full (not halved for causality), as `torch.utils.flop_counter`
    counts them; nothing else.
    """
    blocks = blocks_in_training(shape, Trained())
    output = 2 * shape.vocab_size * shape.n_embd
    return tokens * (output + sum(block.forward_flops(max_length, 0) for block in blocks))


def training_flops(
    shape: Shape,
    tokens: int,
    max_length: int,
    *,
    activation_checkpointing: bool = False,
    lora_r: int = 0,
    target_modules: tuple[str, ...] = (),
    freeze_layers: int = 0,
) -> int:
    """Of forward and backward passes: a product's gradients take two of its size, of weights that
    are trained and of inputs behind which something is. Checkpointing computes the blocks once
    more, without dropout but for the MLP's second layer, whose result the backward pass does not
    use.
    """
    trained = Trained(lora_r, target_modules, freeze_layers)
    blocks = blocks_in_training(shape, trained, activation_checkpointing)
    output = 2 * shape.vocab_size * shape.n_embd  # forward, and as much for each gradient
    per_token = output * (2 + trained.output_embedding(shape))
    for block in blocks:
        per_token += block.forward_flops(max_length, lora_r)
        per_token += block.backward_flops(max_length, lora_r)
        if activation_checkpointing:
            per_token += block.again_flops(max_length, lora_r, dropout=shape.resid_pdrop > 0)
    return tokens * per_token

"""Parameters and floating-point operations of a GPT-2, exactly, from its sizes; needs neither torch
nor the model.
"""

from typing import NamedTuple

TOKENS_PER_PARAMETER = (
    20  # compute-optimal: Hoffmann et al. 2022 (arXiv:2203.15556), approaches 1 and 2, table 3
)
PUBLISHED = {
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
    "distilgpt2": (6, 12, 768),
}  # n_layer, n_head, n_embd of the Hub's models


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
        norms = 3 if self.add_cross_attention else 2
        return (
            sum(inputs * outputs + outputs for inputs, outputs in layers) + norms * 2 * self.n_embd
        )

    def embedding_parameters(self) -> int:
        """Of token and position embeddings, and of an output embedding of its own."""
        words = self.vocab_size if self.tie_word_embeddings else 2 * self.vocab_size
        return (words + self.n_positions) * self.n_embd

    def parameters(self) -> int:
        """Of the whole model, a tied embedding once."""
        return (
            self.embedding_parameters() + self.n_layer * self.block_parameters() + 2 * self.n_embd
        )

    def lora_parameters(
        self, rank: int, target_modules: tuple[str, ...] = (), freeze_layers: int = 0
    ) -> int:
        """Of adapters: rank x (inputs + outputs) of each linear layer that has one (see
        `Trained`).
        """
        trained = Trained(rank, target_modules, freeze_layers)
        layers = {**self.linear_layers(), **self.idle_layers()}
        return sum(
            rank * (inputs + outputs)
            for index in range(self.n_layer)
            for name, (inputs, outputs) in layers.items()
            if trained.adapts(index, name)
        )


class Trained(NamedTuple):
    """Which weights of a model are trained, in the names of finetune's arguments."""

    lora_r: int = 0  # 0: no adapters, the weights themselves
    target_modules: tuple[str, ...] = ()  # ends of names; none: all linear layers of the blocks
    freeze_layers: int = 0

    def adapts(self, block: int, name: str) -> bool:
        """Whether this layer of this block (from 0) has an adapter."""
        if not self.lora_r or block < self.freeze_layers:
            return False
        whole_name = f".transformer.h.{block}.{name}"
        return not self.target_modules or whole_name.endswith(
            tuple(f".{end}" for end in self.target_modules)
        )

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
        return self.embeddings or not (self.lora_r or shape.tie_word_embeddings)

    def parameters(self, shape: Shape) -> int:
        """How many numbers are trained, those included that never get a gradient."""
        if self.lora_r:
            return shape.lora_parameters(*self)
        if not self.freeze_layers:
            return shape.parameters()
        output = 0 if shape.tie_word_embeddings else shape.vocab_size * shape.n_embd
        return (
            output
            + (shape.n_layer - self.freeze_layers) * shape.block_parameters()
            + 2 * shape.n_embd
        )

    def idle_parameters(self, shape: Shape) -> int:
        """How many of them never get a gradient, so that AdamW keeps nothing for them: the
        cross-attention's.
        """
        layers = shape.idle_layers()
        if self.lora_r:
            return self.parameters(shape) - self.parameters(
                shape._replace(add_cross_attention=False)
            )
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
        return 2 * self.inputs * self.outputs + self.adapted * 2 * rank * (
            self.inputs + self.outputs
        )

    def backward_flops(self, rank: int) -> int:
        """Per token: a product's size for each gradient that is needed, of its weights and of its
        input.
        """
        own = 2 * self.inputs * self.outputs * (self.trained + self.input_gradient)
        first, second = 2 * rank * self.inputs, 2 * rank * self.outputs
        return own + self.adapted * (first * (1 + self.input_gradient) + 2 * second)


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
        attention = (
            2 * 2 * 2 * max_length * self.c_proj.inputs if self.c_attn.output_gradient else 0
        )
        return attention + sum(layer.backward_flops(rank) for layer in self)

    def again_flops(self, max_length: int, rank: int, *, dropout: bool) -> int:
        """Per token, of computing the block once more: up to what the backward pass needs last,
        which is what the last product reads, or what a dropout after it left out.
        """
        if not self.trains:
            return 0
        last = self.mlp_proj
        not_needed = 2 * (rank if last.adapted else last.inputs) * last.outputs
        return self.forward_flops(max_length, rank) - (0 if dropout else not_needed)


def blocks_in_training(
    shape: Shape, trained: Trained, activation_checkpointing: bool = False
) -> list[Block]:
    """What is trained in each block, and where gradients go: back to the first trained weight, no
    further. With checkpointing upstream lets the embeddings' output ask for one, so that it goes
    through all blocks.
    """
    blocks = []
    reached = (
        trained.embeddings or activation_checkpointing
    )  # whether the residual stream carries a gradient
    for index in range(shape.n_layer):
        own, layers = trained.trains(index), []
        for name, (inputs, outputs) in shape.linear_layers().items():
            if name in ("attn.c_attn", "mlp.c_fc"):  # it reads a layer norm of the residual stream
                flows = reached or own
            layers.append(Layer(inputs, outputs, own, trained.adapts(index, name), flows))
            flows = layers[-1].output_gradient
            if name in ("attn.c_proj", "mlp.c_proj"):  # it is added to the residual stream
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
    per_token = 2 * shape.vocab_size * shape.n_embd * (2 + trained.output_embedding(shape))
    for block in blocks:
        per_token += block.forward_flops(max_length, lora_r) + block.backward_flops(
            max_length, lora_r
        )
        if activation_checkpointing:
            per_token += block.again_flops(max_length, lora_r, dropout=shape.resid_pdrop > 0)
    return tokens * per_token

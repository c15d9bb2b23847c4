"""GPT-2 from its formula, as lean as PyTorch allows: what hfscale's training is measured against.

Radford et al. 2019 (pre-norm blocks, learned positions, tied output matrix, tanh-GELU), with
PyTorch's own fused attention, AdamW and cross-entropy. Weights start as GPT-2's: normal, 0.02,
those that end a residual branch divided by sqrt(2 x layers). No dropout, weight decay on matrices.
It sees a row as one text: it keeps no documents apart.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Attention and a layer four times as wide, each added to what came in."""

    def __init__(self, n_embd: int, n_head: int):
        super().__init__()
        self.n_head = n_head
        self.ln_1 = nn.LayerNorm(n_embd)
        self.attn = nn.Linear(n_embd, 3 * n_embd)
        self.attn_out = nn.Linear(n_embd, n_embd)
        self.ln_2 = nn.LayerNorm(n_embd)
        self.mlp = nn.Linear(n_embd, 4 * n_embd)
        self.mlp_out = nn.Linear(4 * n_embd, n_embd)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        batch, length, width = hidden.shape
        heads = self.attn(self.ln_1(hidden)).view(batch, length, 3, self.n_head, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.attn_out(mixed.transpose(1, 2).reshape(batch, length, width))
        inner = F.gelu(self.mlp(self.ln_2(hidden)), approximate="tanh")
        return hidden + self.mlp_out(inner)


class LeanGPT(nn.Module):
    """Token ids (batch x length) to logits (batch x length x vocabulary)."""

    def __init__(self, vocab_size: int, n_layer: int, n_head: int, n_embd: int, n_positions: int):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, n_embd)
        self.positions = nn.Embedding(n_positions, n_embd)
        self.blocks = nn.Sequential(*[Block(n_embd, n_head) for _ in range(n_layer)])
        self.norm = nn.LayerNorm(n_embd)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                share = math.sqrt(2 * n_layer) if name.endswith("_out.weight") else 1
                nn.init.normal_(parameter, std=0.02 / share)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        return F.linear(self.norm(self.blocks(hidden)), self.tokens.weight)


def make_optimizer(model: nn.Module, learning_rate: float, weight_decay: float = 0.0):
    """AdamW in one kernel; weight decay on matrices alone."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() != 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others}]
    return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=0.0, fused=True)


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor, bf16: bool = False
) -> torch.Tensor:
    """One step on rows of token ids, each predicted from those before; the loss in nats."""
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=bf16):
        logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()

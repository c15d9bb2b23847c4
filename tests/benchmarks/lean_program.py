"""The lean GPT as a whole program: what `whole_run.py` compares a run of hfscale with.

python tests/benchmarks/lean_program.py text.txt 2000   # weights in lean.pt
"""

import sys
from pathlib import Path

import torch
from lean_gpt import LeanGPT, make_optimizer, train_step
from torch.nn import functional as F

CONTEXT = 64
BATCH_SIZE = 12


def main() -> None:
    text = Path(sys.argv[1]).read_text("utf-8")
    steps = int(sys.argv[2])
    number = {character: i for i, character in enumerate(sorted(set(text)))}
    ids = torch.tensor([number[character] for character in text])
    rows = ids.unfold(0, CONTEXT + 1, CONTEXT)
    train, validation = rows.split([len(rows) - len(rows) // 10, len(rows) // 10])
    model = LeanGPT(len(number), n_layer=4, n_head=4, n_embd=128, n_positions=CONTEXT)
    optimizer = make_optimizer(model, learning_rate=4e-3, weight_decay=0.1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(1, steps + 1):
        loss = train_step(model, optimizer, train[torch.randint(len(train), (BATCH_SIZE,))])
        cosine.step()
        if step % 50 == 0:
            print(step, loss.item())
        if step % (steps // 4) == 0:
            with torch.no_grad():
                losses = [
                    F.cross_entropy(model(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten())
                    for part in validation.split(64)
                ]
            print(step, torch.stack(losses).mean().item())
    torch.save(model.state_dict(), "lean.pt")


if __name__ == "__main__":
    main()

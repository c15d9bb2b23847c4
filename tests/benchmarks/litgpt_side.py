"""One side of `train_speed.py`: litgpt's own `pretrain.setup` on the same rows, in the environment
that has litgpt; hfscale is not imported.

    python tests/benchmarks/litgpt_side.py shape.json rows.npy
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from measure import Turns
from torch.utils.data import DataLoader


class Rows(torch.utils.data.Dataset):
    """Rows of token ids, one more than the context, whose last is only predicted."""

    def __init__(self, ids: np.ndarray):
        self.ids = torch.from_numpy(ids.astype(np.int64))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.ids[index]


class CountedLoader(DataLoader):
    """A batch is asked for when the step before it has ended."""

    def __init__(self, turns: Turns, *args, **kwargs):
        self.turns = turns
        super().__init__(*args, **kwargs)

    def __iter__(self):
        for batch in super().__iter__():
            self.turns.step()
            yield batch


def main() -> None:
    shape_file, rows_file = sys.argv[1:]
    turns = Turns()
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.config import Config
    from litgpt.data import DataModule
    from litgpt.pretrain import setup

    shape = json.loads(Path(shape_file).read_text())
    length = shape["n_positions"]
    rows = Rows(np.load(rows_file))
    if not shape["compiled"]:
        torch.compile = lambda model: model  # `setup` compiles always

    class Data(DataModule):
        def connect(self, tokenizer=None, batch_size=1, max_seq_length=None):
            self.batch_size = batch_size

        def train_dataloader(self):
            return CountedLoader(turns, rows, batch_size=self.batch_size, shuffle=True)

        def val_dataloader(self):
            return DataLoader(rows, batch_size=self.batch_size)

    steps = 10**6
    setup(
        "benchmark",
        # GPT-2's blocks; litgpt has no learned positions, so its own rotary ones take their place.
        model_config=Config(
            name="benchmark",
            block_size=length,
            vocab_size=shape["vocab_size"],
            padded_vocab_size=shape["vocab_size"],
            n_layer=shape["n_layer"],
            n_head=shape["n_head"],
            n_embd=shape["n_embd"],
            rotary_percentage=0.25,
            parallel_residual=False,
            gelu_approximate="tanh",
        ),
        precision="bf16-mixed" if shape["bf16"] else "32-true",
        data=Data(),
        out_dir=Path("litgpt"),
        train=TrainArgs(
            global_batch_size=shape["batch_size"],
            micro_batch_size=shape["batch_size"],
            max_tokens=steps * shape["batch_size"] * length,
            max_norm=1.0,
            lr_warmup_steps=10,
            min_lr=1e-4,
            log_interval=shape["logging_steps"],
            save_interval=None,
            tie_embeddings=True,
        ),
        eval=EvalArgs(interval=steps, max_iters=1),
        devices=1,
        logger_name="csv",
    )


if __name__ == "__main__":
    main()

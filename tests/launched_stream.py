"""recipes/pretrain.py as one rank of a launch, which notes the rows that it trains on in
$ROW_NOTES/rank<n>.json.

test_streaming.py starts it through `hfscale tests/launched_stream.py`; the recipe runs unchanged.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hfscale.process import run
from recipes.pretrain import PretrainArguments, main  # noqa: E402


@dataclass
class LaunchedArguments(PretrainArguments):
    """The recipe's own, declared here because hfscale checks the arguments of the script it
    launches.
    """


def note_rows() -> None:
    """Make every training step write down its rows first."""
    from hfscale.training.trainer import LMTrainer

    step, batches = LMTrainer.training_step, []

    def noted(self, model, inputs, num_items_in_batch=None):
        batches.append(inputs["input_ids"].tolist())
        Path(os.environ["ROW_NOTES"], f"rank{self.args.process_index}.json").write_text(
            json.dumps(batches)
        )
        return step(self, model, inputs, num_items_in_batch)

    LMTrainer.training_step = noted


if __name__ == "__main__":
    note_rows()
    run(main)

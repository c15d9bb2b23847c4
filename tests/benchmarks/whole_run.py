"""What a newcomer's whole training run costs, from the command to the saved model.

    python tests/benchmarks/whole_run.py

`hfscale pretrain --config char_tiny` beside `lean_program.py`: both read the same 1.1
million characters, make a vocabulary of them, train 2,000 steps of 12 x 64 characters (4 layers x 128),
score the last tenth of the text four times, and save. hfscale alone writes checkpoints, TensorBoard
logs, a tokenizer, three samples and the run's record, and can be resumed.
"""

import shutil
import sys
from pathlib import Path

from measure import Row, compare, cost_of_program, take_turns
from running import run_alone
from texts import long_text

HERE = Path(__file__).parent
CHARACTERS = 1_100_000


def benchmark(folder: Path, is_small: bool, rounds: int | None = None) -> list[Row]:
    """One row: hfscale / the lean program."""
    steps = 200 if is_small else 2000
    (folder / "text.txt").write_text(long_text(CHARACTERS), "utf-8")
    hfscale = [str(Path(sys.executable).with_name("hfscale")), "pretrain", "--config", "char_tiny"]
    hfscale += ["--source", "text.txt", "--output_dir", "run", "--max_steps", str(steps)]
    hfscale += ["--eval_steps", str(steps // 4), "--save_steps", str(steps // 2)]
    lean = [sys.executable, str(HERE / "lean_program.py"), "text.txt", str(steps)]

    def run_hfscale():
        shutil.rmtree(folder / "run", ignore_errors=True)
        return cost_of_program(hfscale, folder)

    sides = {"hfscale": run_hfscale, "lean": lambda: cost_of_program(lean, folder)}
    costs = take_turns(sides, rounds or (2 if is_small else 5))
    seconds = {side: min(cost[side].cpu for cost in costs) for side in sides}
    note = f"{steps:,} steps; CPU seconds {seconds['hfscale']:.1f} / {seconds['lean']:.1f} at least"
    return [compare("whole run 4x128: hfscale / lean GPT", "hfscale", "lean", costs, note)]


if __name__ == "__main__":
    run_alone(benchmark, __doc__)

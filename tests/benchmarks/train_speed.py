"""What a training step costs, beside other ways to train the same model on the same rows.

    python tests/benchmarks/train_speed.py --rounds 12

Each side trains in a process of its own and waits while another one works (see `measure.py`). Two
shapes: 4 layers x 128 (context 64, 12 rows), and 6 x 384 (context 256, 4 rows). What differs:

- bare loop: the same model and the same collated rows, without Trainer;
- lean GPT: `lean_gpt.py`, the same arithmetic in fewer modules, rows that lie ready as a tensor;
- plain Trainer: `GPT2Config()` with its dropout and unfused GELU, float32, as its defaults are;
- TRL: the same model as plain Trainer's, in hfscale's precision, as `SFTTrainer` comes (with
  gradient checkpointing) and without that;
- litgpt: GPT-2's blocks with rotary positions in place of learned ones, hfscale's precision, as
  `pretrain.setup` runs it (compiled, where there is a compiler) and uncompiled.

hfscale and its bare loop take bf16 where `training_arguments` would: at width 384, with matrix
units for it.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from measure import Row, Side, compare, not_measured, take_turns
from running import run_alone
from texts import long_text

HERE = Path(__file__).parent
PACKAGES = HERE / "litgpt_packages.txt"
BUILD = HERE.parents[1] / "build"
NUM_ROWS = 1200
CHARACTERS_UP_TO = 256  # a smaller vocabulary holds characters, a larger one words
CHARACTERS_PER_WORD = 8
SHAPES = {
    "4x128": {
        "n_layer": 4,
        "n_head": 4,
        "n_embd": 128,
        "n_positions": 64,
        "batch_size": 12,
        "vocab_size": 65,
        "steps": 30,
    },
    "6x384": {
        "n_layer": 6,
        "n_head": 6,
        "n_embd": 384,
        "n_positions": 256,
        "batch_size": 4,
        "vocab_size": 8192,
        "steps": 3,
    },
}
COMPILED = "litgpt"  # as it comes
SIDES = {
    "hfscale": {},
    "hfscale, 4 documents in a row": {"side": "hfscale", "documents_per_row": 4},
    "bare loop": {"side": "bare"},
    "lean GPT": {"side": "lean"},
    "plain Trainer": {"side": "plain"},
    "TRL SFT": {"side": "trl"},
    "TRL SFT without checkpointing": {"side": "trl_without_checkpointing"},
    COMPILED: {"side": "litgpt", "compiled": True},
    "litgpt uncompiled": {"side": "litgpt"},
}
COMMON = {"documents_per_row": 1, "compiled": False, "logging_steps": 50}


def benchmark(folder: Path, is_small: bool, rounds: int | None = None) -> list[Row]:
    """Rows of the table; the processes work in `folder`."""
    rounds = rounds or (6 if is_small else 30)
    sides = dict(SIDES)
    if is_small:
        sides.pop(COMPILED)  # which takes minutes to compile
    rows = []
    for name, shape in SHAPES.items():
        rows += measure_shape(folder / name, name, shape, sides, rounds)
    return rows


def measure_shape(
    folder: Path, name: str, shape: dict, sides: dict[str, dict], rounds: int
) -> list[Row]:
    """The sides at one shape, beside hfscale's."""
    from hfscale.training.training_args import BF16_MIN_WIDTH, has_bf16_units

    folder.mkdir(parents=True)
    np.save(folder / "rows.npy", rows_of_text(shape["vocab_size"], shape["n_positions"]))
    bf16 = shape["n_embd"] >= BF16_MIN_WIDTH and has_bf16_units(on_cpu=True)
    started: dict[str, Side] = {}
    missing: dict[str, str] = {}
    for side, settings in sides.items():
        values = COMMON | shape | {"bf16": bf16} | settings
        try:
            started[side] = start(folder / side.replace(" ", "_"), values.pop("side", side), values)
            started[side].run(shape["steps"])  # the first steps choose kernels and make buffers
        except (RuntimeError, OSError) as error:
            missing[side] = str(error)
            started.pop(side, None)
    calls = {
        side: lambda process=process: process.run(shape["steps"])
        for side, process in started.items()
    }
    costs = take_turns(calls, rounds)
    for process in started.values():
        process.end()
    precision = "bf16" if bf16 else "float32"
    return [
        _row(f"step {name}", side, costs, missing, precision) for side in sides if side != "hfscale"
    ]


def rows_of_text(vocab_size: int, length: int) -> np.ndarray:
    """Rows of token ids, each with the next row's first token at its end: characters or words of a
    text by how frequent they are, the rarest under the last id.
    """
    count = NUM_ROWS * length + 1
    if vocab_size < CHARACTERS_UP_TO:
        units = list(long_text(count))
    else:
        units = long_text(CHARACTERS_PER_WORD * count).split()[:count]
    ranks = {unit: rank for rank, (unit, _) in enumerate(Counter(units).most_common())}
    ids = np.array([min(ranks[unit], vocab_size - 1) for unit in units], dtype=np.int32)
    starts = np.arange((len(ids) - 1) // length) * length
    return ids[starts[:, None] + np.arange(length + 1)]


def _row(what: str, side: str, costs, missing, precision: str) -> Row:
    ours, theirs = "hfscale", side
    name = f"{what}: hfscale / {side}"
    if side.startswith("hfscale"):
        ours, theirs = side, "hfscale"
        name = f"{what}: {side} / in one piece"
    if side in missing:
        return not_measured(name, missing[side])
    ms = 1000 * np.median([cost[theirs].cpu for cost in costs])
    return compare(name, ours, theirs, costs, f"{precision}; {theirs}: {ms:.1f} CPU ms a step")


def start(folder: Path, side: str, shape: dict) -> Side:
    """The process of a side, in a folder of its own."""
    folder.mkdir()
    (folder / "shape.json").write_text(json.dumps(shape))
    files = ["shape.json", "../rows.npy"]
    if side != "litgpt":
        program = [sys.executable, str(HERE / "training_sides.py"), side]
        return Side([*program, *files], folder, side)
    packages = install_litgpt()
    code = (
        f"import sys, runpy; sys.path[:0] = [{str(packages)!r}, {str(HERE)!r}]; "
        f"runpy.run_path({str(HERE / 'litgpt_side.py')!r}, run_name='__main__')"
    )
    return Side([sys.executable, "-c", code, *files], folder, side)


def install_litgpt() -> Path:
    """litgpt's packages, in a folder of their own; PyTorch is the one of this environment.

    Raises RuntimeError: pip could not get them.
    """
    folder = BUILD / f"litgpt-{sys.version_info[0]}.{sys.version_info[1]}"
    installed = folder / "installed"
    if installed.exists() and installed.read_text() == PACKAGES.read_text():
        return folder
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
    result = subprocess.run(
        [*pip, "--target", str(folder), "-r", str(PACKAGES)], capture_output=True, text=True
    )
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        raise RuntimeError(f"litgpt: {(lines or ['pip failed'])[-1]}")
    installed.write_text(PACKAGES.read_text())
    return folder


if __name__ == "__main__":
    run_alone(benchmark, __doc__)

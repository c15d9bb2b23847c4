"""Which architecture is better at the size of a laptop: equal parameters, equal tokens, tuned rates.

    python -m tests.studies.architectures --books "books/*.md.gz" --output architectures.json

Each architecture trains on two texts, books and Python's standard library as code. Its MLP is made as
wide as it takes to have GPT-2's number of parameters. Its learning rate is the best of several on
documents for tuning, with a seed of its own; then seeds 0 to 4 train with that rate and are scored on
other documents. A seed is the same initialisation generator and the same order of rows for all, so
losses are compared seed by seed. The architectures take turns, so that a slower hour of the machine is
one for all. Every run is a process of its own (its memory is its own), is a line of the output as soon
as it is there, and is not run again.
"""

import argparse
import json
import multiprocessing
import random
import resource
import sys
from pathlib import Path

import numpy as np
from scipy import stats

ARCHITECTURES = ("gpt2", "llama", "qwen3", "olmo2", "smollm3", "nanochat")
BASELINE = "gpt2"
TEXTS = ("books", "code")
SEEDS = range(5)
TUNING_SEED = 100
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
VOCABULARY = 1024
WIDTH, LAYERS, HEADS, CONTEXT = 128, 4, 4, 128
ROWS, STEPS = 8, 300
DOCUMENT_CHARACTERS = 3000
TEXT_CHARACTERS = 2_400_000  # of each text, a twelfth of which is held out twice
SHAPE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
}
WIDTH_STEP = 8  # of the MLP, in numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--books", required=True, help="files or folders of books, as --source takes"
    )
    parser.add_argument("--output", type=Path, default=Path("architectures.json"))
    parser.add_argument("--place", type=Path, default=Path("runs/architectures"))
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES))
    args = parser.parse_args()

    sources = {"books": args.books, "code": "embedded:python-code"}
    done = [json.loads(line) for line in _lines(args.output)]
    for text in TEXTS:
        files = write_texts(args.place, text, sources[text])
        for rate in RATES:
            for architecture in args.architectures:
                key = run_key(text, architecture, TUNING_SEED, rate)
                run_once(key, files, done, args)
        for seed in SEEDS:
            for architecture in args.architectures:
                key = run_key(text, architecture, seed, best_rate(done, text, architecture))
                run_once(key, files, done, args)
    show(done)


def run_key(text: str, architecture: str, seed: int, rate: float) -> dict:
    return {"text": text, "architecture": architecture, "seed": seed, "rate": rate}


def run_once(key: dict, files: dict[str, str], done: list[dict], args: argparse.Namespace) -> None:
    """Train what is not among `done` yet, in a child of this process; added there and to the file."""
    if any(key.items() <= run.items() for run in done):
        return
    with multiprocessing.get_context("fork").Pool(1) as pool:
        result = pool.apply(train, (args.place, files), key)
    done.append(key | result)
    with args.output.open("a") as file:
        file.write(json.dumps(done[-1]) + "\n")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def write_texts(place: Path, text: str, source: str) -> dict[str, str]:
    """Documents of equal length for training, tuning and the test, as three files; by part."""
    from hfscale.data.sources import load_documents

    files = {part: str(place / f"{text}-{part}.jsonl") for part in ("train", "tune", "test")}
    if all(Path(file).exists() for file in files.values()):
        return files
    place.mkdir(parents=True, exist_ok=True)
    pieces = [
        whole[start : start + DOCUMENT_CHARACTERS]
        for whole in load_documents(source)["text"]
        for start in range(0, len(whole), DOCUMENT_CHARACTERS)
    ]
    random.Random(0).shuffle(pieces)
    pieces = pieces[: TEXT_CHARACTERS // DOCUMENT_CHARACTERS]
    held_out = len(pieces) // 12
    parts = {
        "tune": pieces[:held_out],
        "test": pieces[held_out : 2 * held_out],
        "train": pieces[2 * held_out :],
    }
    for part, chosen in parts.items():
        lines = [json.dumps({"text": piece}) for piece in chosen]
        Path(files[part]).write_text("\n".join(lines) + "\n")
    return files


def best_rate(done: list[dict], text: str, architecture: str) -> float:
    """Of the runs for tuning."""
    tried = [
        run
        for run in done
        if (run["text"], run["architecture"], run["seed"]) == (text, architecture, TUNING_SEED)
    ]
    return min(tried, key=lambda run: run["loss"])["rate"]


def train(
    place: Path, files: dict[str, str], *, text: str, architecture: str, seed: int, rate: float
) -> dict:
    """One run of `pretrain`: its loss on held-out documents, and what it cost."""
    from recipes import pretrain

    folder = place / f"{text}-{architecture}-{seed}-{rate:g}"
    held_out = files["tune" if seed == TUNING_SEED else "test"]
    fields = SHAPE | {"intermediate_size": mlp_width(architecture)}
    words = {
        "source": files["train"],
        "validation_source": held_out,
        "tokenizer": f"train:{VOCABULARY}",
        "output_dir": folder,
        "architecture": architecture,
        "max_steps": STEPS,
        "per_device_train_batch_size": ROWS,
        "learning_rate": rate,
        "seed": seed,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "bf16": "false",
        "disable_tqdm": "true",
    } | fields
    command = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    before = _cpu_seconds()
    pretrain.main([*command, "--overwrite"])
    seconds = _cpu_seconds() - before
    record = json.loads((folder / "run.json").read_text())
    return {
        "loss": record["metrics"]["eval_loss"],
        "parameters": record["model"]["parameters"],
        "cpu_seconds": seconds,
        "peak_bytes": record["train"]["memory_peak_bytes"],
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def mlp_width(architecture: str) -> int:
    """With which the model has as many parameters as GPT-2 with an MLP four times as wide."""
    target = _parameters(BASELINE, 4 * WIDTH)
    widths = range(WIDTH_STEP, 8 * WIDTH, WIDTH_STEP)
    return min(widths, key=lambda width: abs(_parameters(architecture, width) - target))


def _parameters(architecture: str, width: int) -> int:
    from hfscale.new_models import count_new_parameters, new_config

    fields = SHAPE | {"intermediate_size": width}
    return count_new_parameters(new_config(architecture, vocab_size=VOCABULARY, **fields))


def show(done: list[dict]) -> None:
    """The tables of docs/architectures.md."""
    for text in TEXTS:
        runs = [run for run in done if run["text"] == text and run["seed"] != TUNING_SEED]
        names = list(dict.fromkeys(run["architecture"] for run in runs))
        baseline = _column(runs, BASELINE, "loss")
        print(
            f"\n{text}\narchitecture | parameters | rate | loss | minus {BASELINE} | CPU | memory"
        )
        p_values = {
            name: float(stats.ttest_rel(_column(runs, name, "loss"), baseline).pvalue)
            for name in names
            if name != BASELINE
        }
        adjusted = holm(p_values)
        for name in names:
            mine = [run for run in runs if run["architecture"] == name]
            losses = _column(runs, name, "loss")
            cells = [
                name,
                f"{mine[0]['parameters']:,}",
                f"{mine[0]['rate']:g}",
                f"{losses.mean():.4f}",
            ]
            if name != BASELINE:
                low, high = paired_interval(losses - baseline)
                cells.append(
                    f"{(losses - baseline).mean():+.4f} [{low:+.4f}, {high:+.4f}], p {adjusted[name]:.2g}"
                )
            else:
                cells.append("")
            for name_of_cost in ("cpu_seconds", "peak_bytes"):
                ratios = _column(runs, name, name_of_cost) / _column(runs, BASELINE, name_of_cost)
                cells.append(f"{np.exp(np.log(ratios).mean()):.2f}")
            print(" | ".join(cells))


def _column(runs: list[dict], architecture: str, name: str) -> np.ndarray:
    mine = {run["seed"]: run[name] for run in runs if run["architecture"] == architecture}
    return np.array([mine[seed] for seed in SEEDS])


def paired_interval(differences: np.ndarray) -> tuple[float, float]:
    """95 %, of the mean of differences that are normally distributed."""
    margin = stats.sem(differences) * stats.t.ppf(0.975, len(differences) - 1)
    return differences.mean() - margin, differences.mean() + margin


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Adjusted for several comparisons (Holm 1979)."""
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


if __name__ == "__main__":
    sys.exit(main())

"""How the cost of prepare_data_cluster grows with the text, on one machine, one task at a time.

    python tests/benchmarks/cleaning_growth.py                       # 20, 100 and 500 MB
    python tests/benchmarks/cleaning_growth.py --megabytes 20,2000

Made text: words as frequent as in Python's documentation, drawn one by one, in documents of 600;
one in twenty is a copy of an earlier one of its file, one in twenty a copy with one word changed.
Each file of 20 MB is one task. The slope is that of the line through the logarithms of bytes and of
CPU seconds: 1 is linear. Memory is the whole process', with pages of mapped files.
"""

import itertools
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from measure import Cost, Row, cost_and_peak, once
from running import run_alone
from texts import documents

RECIPE = Path(__file__).parents[2] / "recipes" / "prepare_data_cluster.py"
FILE_BYTES = 20_000_000
DOCUMENT_WORDS = 600
COPIES = 0.05  # of the documents; as many are near copies
MEGABYTES = "20,100,500"
SMALL_MEGABYTES = "20,40"


def benchmark(
    folder: Path, is_small: bool, rounds: int | None = None, *, megabytes: str = MEGABYTES
) -> list[Row]:
    """Rows of the table: CPU seconds and peak memory of each size, and the slopes."""
    sizes = [int(size) for size in (SMALL_MEGABYTES if is_small else megabytes).split(",")]
    words, shares = frequent_words()
    rows = []
    cpu_seconds = []
    for size in sizes:
        num_files = max(1, size * 1_000_000 // FILE_BYTES)
        source = folder / "text"
        source.mkdir()
        for number in range(num_files):
            write_file(source / f"{number:05d}.jsonl", words, shares, seed=number)
        cost, peak = run_recipe(source, folder, num_files)
        cpu_seconds.append(cost.cpu)
        print(f"{size} MB: {cost.cpu:.1f} CPU s, {peak:.0f} MiB", file=sys.stderr)
        rows.append(once(f"cleaning {size} MB: CPU seconds", cost.cpu, f"{num_files} tasks"))
        rows.append(once(f"cleaning {size} MB: wall seconds", cost.wall))
        rows.append(once(f"cleaning {size} MB: peak MiB", peak))
    for (small, less), (large, more) in itertools.pairwise(zip(sizes, cpu_seconds, strict=True)):
        slope = np.log(more / less) / np.log(large / small)
        rows.append(once(f"cleaning {small} to {large} MB: slope of CPU seconds", float(slope)))
    if len(sizes) > 1:
        slope, _ = np.polyfit(np.log(sizes), np.log(cpu_seconds), 1)
        rows.append(once("cleaning, all sizes: slope of CPU seconds", float(slope), "1 is linear"))
    return rows


def frequent_words() -> tuple[np.ndarray, np.ndarray]:
    """The words of a text, and how often each comes."""
    counts = Counter(
        word for text in documents() for word in text.lower().split() if word.isalpha()
    )
    words, numbers = zip(*counts.most_common(20_000), strict=True)
    return np.array(words, dtype=object), np.array(numbers) / sum(numbers)


def write_file(path: Path, words: np.ndarray, shares: np.ndarray, seed: int) -> None:
    """About 20 MB of documents, one JSON object to a line."""
    generator = np.random.default_rng(seed)
    written = 0
    texts: list[str] = []
    with path.open("w", encoding="utf-8") as file:
        while written < FILE_BYTES:
            kind = generator.random()
            if texts and kind < 2 * COPIES:
                text = texts[generator.integers(len(texts))]
                text = text.replace(" the ", " another ", 1) if kind < COPIES else text
            else:
                text = " ".join(generator.choice(words, DOCUMENT_WORDS, p=shares))
            texts.append(text)
            written += file.write(json.dumps({"text": text}) + "\n")


def run_recipe(source: Path, folder: Path, num_tasks: int) -> tuple[Cost, float]:
    """What the recipe costs, and the peak of its memory in MiB; the text and the result go."""
    output_dir = folder / "data"
    cache = folder / "cache"
    command = ["env", f"HF_HOME={cache}", sys.executable, str(RECIPE), "--source", str(source)]
    command += ["--output_dir", str(output_dir), "--tasks", str(num_tasks), "--workers", "1"]
    cost = cost_and_peak(command, folder)
    card = json.loads((output_dir / "data_card.json").read_text("utf-8"))
    kept = card["stages"][-1]["documents_out"] / card["stages"][0]["documents_out"]
    if kept < 1 - 3 * COPIES:  # the made text was to pass the rules
        raise RuntimeError(f"only {kept:.0%} of the documents were kept")
    for path in (source, output_dir, Path(f"{output_dir}.work"), cache):
        shutil.rmtree(path, ignore_errors=True)
    return cost


if __name__ == "__main__":
    run_alone(benchmark, __doc__ or "", megabytes=MEGABYTES)

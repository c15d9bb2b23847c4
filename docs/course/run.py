"""The course's chapters as notebooks: executed in order, once, and written in English and Chinese.

python docs/course/run.py                     # all twelve, into build/course/en and build/course/zh
python docs/course/run.py --chapters 5 6      # some, on the results of the others in runs/course
python docs/course/run.py --no-execute        # notebooks without outputs, in a second
"""

import argparse
import copy
import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jupytext
import psutil
from nbformat import NotebookNode

from hfscale import course

HERE = Path(__file__).parent
LANGUAGES = ("en", "zh")
# Bars and notes of libraries would stand between the lines of a page.
QUIET = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
# Lines that say nothing to a reader: tqdm's bars, what it says of Jupyter's own, what bitsandbytes
# says of a package for other processors, and peft's use of a name that transformers will drop.
NOISE = re.compile(
    r"\d+%\||IProgress not found|from \.autonotebook|gemm_4bit_forward"
    r"|is_gradient_checkpointing|^  warnings\.warn\($"
)
SECONDS_BETWEEN_LOOKS = 0.5


class Cost(NamedTuple):
    """What a chapter took."""

    minutes: float
    cpu_minutes: float  # of all its processes together
    gigabytes: float  # the most that its processes held at one time


def chapter_file(number: int) -> Path:
    """The source of a chapter."""
    return HERE / f"{course.file_name(number)}.py"


def read_chapter(path: Path) -> NotebookNode:
    """The chapter as a notebook, with the text cells of both languages; whatever its line ends."""
    text = path.read_text("utf-8")  # as Python reads text: \\r\\n is \\n
    notebook = jupytext.reads(text, fmt="py:percent")
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    return notebook


def in_language(notebook: NotebookNode, language: str) -> NotebookNode:
    """The notebook with all code cells, and the text cells of one language."""
    part = copy.deepcopy(notebook)
    part.cells = [cell for cell in part.cells if cell.metadata.get("lang", language) == language]
    for cell in part.cells:
        cell.metadata.pop("lang", None)
    return part


def write_notebooks(notebook: NotebookNode, folder: Path, name: str) -> None:
    """The notebook in each language, into a folder for each."""
    for language in LANGUAGES:
        path = folder / language / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        jupytext.write(in_language(notebook, language), path, fmt="ipynb")


def execute(notebook: NotebookNode) -> Cost:
    """Run the cells in a kernel of their own, in this folder, and keep what they show."""
    from nbclient import NotebookClient
    from traitlets.config import Config

    started = time.perf_counter()
    watch = Watch()
    # By sockets in the file system where there are any, which no other user can read.
    transport = "tcp" if sys.platform == "win32" else "ipc"
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        config=Config({"KernelManager": {"transport": transport}}),
    )
    try:
        with watch:
            client.execute(cwd=os.getcwd())
    finally:
        tidy(notebook)
    return Cost(
        (time.perf_counter() - started) / 60, watch.cpu_seconds / 60, watch.most_bytes / 1e9
    )


def tidy(notebook: NotebookNode) -> None:
    """Leave of what was printed what a terminal would show at the end, without noise, in one piece
    for what was printed in a row.
    """
    for cell in notebook.cells:
        kept: list[NotebookNode] = []
        for output in cell.get("outputs", []):
            if output.output_type != "stream":
                kept.append(output)
                continue
            lines = [line.rpartition("\r")[2] for line in output.text.split("\n")]
            output.text = "\n".join(line for line in lines if not NOISE.search(line))
            if kept and kept[-1].get("name") == output.name:
                kept[-1].text += output.text
            elif output.text.strip():
                kept.append(output)
        if cell.cell_type == "code":
            cell.outputs = kept


class Watch:
    """Looks twice a second at what the processes below this one take."""

    def __init__(self):
        self.most_bytes = 0
        self.cpu_seconds = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_LOOKS):
            held = 0
            used = 0.0
            for process in psutil.Process().children(recursive=True):
                try:
                    held += process.memory_info().rss
                    if process.ppid() == os.getpid():  # with those below it that have ended
                        used += sum(process.cpu_times()[:4])
                except psutil.Error:  # it ended meanwhile
                    continue
            self.most_bytes = max(self.most_bytes, held)
            self.cpu_seconds = max(self.cpu_seconds, used)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the notebooks; the exit status is 1 where a chapter fails."""
    args = parser().parse_args(argv)
    folder = Path(args.output_dir)
    if args.no_execute:
        for number in args.chapters:
            write_notebooks(read_chapter(chapter_file(number)), folder, course.file_name(number))
        print(f"notebooks: {', '.join(str(folder / language) for language in LANGUAGES)}")
        return 0
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # Commands that a cell prints then begin with `hfscale`, without a path of this machine.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    costs: dict[int, Cost] = {}
    for number in args.chapters:
        name = course.file_name(number)
        print(f"chapter {number} of {len(course.CHAPTERS)}: {name} ...", flush=True)
        notebook = read_chapter(chapter_file(number))
        try:
            costs[number] = execute(notebook)
        except Exception as error:
            write_notebooks(notebook, folder, name)
            print(f"{error}\nchapter {number} failed; what it showed: {folder}/en/{name}.ipynb")
            return 1
        write_notebooks(notebook, folder, name)
        print(f"  {costs[number].minutes:.1f} minutes", flush=True)
    show(costs)
    print(f"notebooks: {', '.join(str(folder / language) for language in LANGUAGES)}")
    return 0


def show(costs: dict[int, Cost]) -> None:
    """The table of chapters: the number that each ended in, what is allowed, and what it took."""
    numbers = course.read_numbers()
    rows = [("chapter", "number", "value", "allowed", "minutes", "CPU minutes", "GB")]
    for chapter, cost in costs.items():
        entry = numbers[str(chapter)]
        rows.append(
            (
                course.file_name(chapter),
                entry["name"],
                f"{entry['value']:.4g}",
                entry["allowed"],
                f"{cost.minutes:.1f}",
                f"{cost.cpu_minutes:.1f}",
                f"{cost.gigabytes:.2f}",
            )
        )
    total = [sum(column) for column in zip(*costs.values(), strict=True)]
    most = max(cost.gigabytes for cost in costs.values())
    rows.append(("together", "", "", "", f"{total[0]:.1f}", f"{total[1]:.1f}", f"{most:.2f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        )


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    numbers = range(1, len(course.CHAPTERS) + 1)
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("--chapters", type=int, nargs="+", choices=numbers, default=list(numbers))
    made.add_argument("--output_dir", default="build/course", help="default: %(default)s")
    made.add_argument(
        "--no-execute", action="store_true", dest="no_execute", help="notebooks without outputs"
    )
    return made


if __name__ == "__main__":
    sys.exit(main())

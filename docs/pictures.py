"""The pictures of the pages, from small runs that are made for them: `make pictures`.

python docs/pictures.py                           # all, into docs/pictures
python docs/pictures.py --only report plan        # some
python docs/pictures.py --runs /tmp/runs          # keeps the runs there for the next time
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.browser import chromium  # noqa: E402 - the project's own, beside the docs

PICTURES = ROOT / "docs" / "pictures"
MOST_BYTES = 150_000
MOST_WIDTH = 1200
SIZE = {"width": MOST_WIDTH, "height": 850}
# Enough to see something, in a minute each on two cores.
MODEL = [
    *("--config", "tiny_cpu", "--max_steps", "200", "--eval_steps", "50", "--logging_steps", "10"),
    *("--hidden_size", "128", "--tokenizer", "train:2048", "--learning_rate", "3e-3"),
]
TALK = ["--config", "dialogue", "--max_steps", "300", "--eval_strategy", "no"]
# A row of the study in docs/scaling.md: layers x width, parameters, losses by tokens.
STUDY = re.compile(r"^\| (\dx\d+) \| ([\d,]+) \| " + r" \| ".join([r"(\d\.\d+)"] * 4), re.M)
STUDY_TOKENS = (125_000, 250_000, 500_000, 1_000_000)
SENTENCE = "The function returns the name of the module."


def hfscale(*words: str, within: Path) -> None:
    """Run a recipe there as a user does; what it says is shown if it fails."""
    command = [sys.executable, "-m", "hfscale.cli", *words]
    done = subprocess.run(command, cwd=within, capture_output=True, text=True, env=environment())
    if done.returncode:
        raise SystemExit(f"hfscale {' '.join(words)}\n{done.stderr}")


def environment() -> dict[str, str]:
    """This checkout first, and no network."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def once(folder: Path, *words: str) -> Path:
    """A run's folder, made unless it lies there."""
    if not folder.is_dir():
        hfscale(*words, "--output_dir", folder.name, within=folder.parent)
    return folder


def trained(runs: Path) -> Path:
    """A model of Python's documentation."""
    return once(runs / "docs", "pretrain", *MODEL)


# ---- the pictures


def report(runs: Path) -> Image.Image:
    """The page of a run."""
    folder = trained(runs)
    page = ["--output_file", "report.html", "--overwrite"]
    hfscale("report", "--runs", folder.name, *page, within=runs)
    return photographed(runs / "report.html")


def attention(runs: Path) -> Image.Image:
    """The attention page, with one head by hand."""
    words = ["--model", trained(runs).name, "--sentence", SENTENCE, "--explain", "0", "1"]
    folder = once(runs / "attention", "attention_maps", *words)
    return photographed(folder / "attention.html")


def funnel(runs: Path) -> Image.Image:
    """What became of the documents."""
    folder = once(runs / "data", "prepare_data", "--config", "tiny_cpu")
    return Image.open(folder / "funnel.png")


def comparison(runs: Path) -> Image.Image:
    """Two learning rates, five seeds each, as docs/comparing.md shows them."""
    folder = once(runs / "compare", "compare", "--config", "tiny_cpu")
    return Image.open(folder / "comparison.png")


def scaling(runs: Path) -> Image.Image:
    """The law of the study that docs/scaling.md shows, fitted to its table."""
    rows = ["params,tokens,loss"]
    for _, parameters, *losses in STUDY.findall((ROOT / "docs" / "scaling.md").read_text("utf-8")):
        for tokens, loss in zip(STUDY_TOKENS, losses, strict=True):
            rows.append(f"{parameters.replace(',', '')},{tokens},{loss}")
    (runs / "study.csv").write_text("\n".join(rows))
    columns = ["--n_column", "params", "--d_column", "tokens", "--loss_column", "loss"]
    folder = once(runs / "scale", "scale", "--fit_csv", "study.csv", *columns)
    return Image.open(folder / "scaling.png")


def plan(runs: Path) -> Image.Image:
    """GPT-2 large on eight GPUs of 24 GB: which launch configs fit."""
    words = ["--config", "pretrain/gpt2_large", "--gpu", "l4", "--num_gpus", "8"]
    (runs / "plan.png").unlink(missing_ok=True)
    hfscale("plan", *words, "--picture", "plan.png", within=runs)
    return Image.open(runs / "plan.png")


def chat(runs: Path) -> Image.Image:
    """The page of the server, with a model that learned to take bookings."""
    folder = once(runs / "dialogue", "finetune_task", *TALK)

    def talk(page: Page) -> None:
        page.set_viewport_size({"width": MOST_WIDTH, "height": 600})
        page.click("#tune")
        page.check("#colours")
        page.click("#tune")
        for text in ("Hello, this is Vera.", "I need a room for 3 on Saturday."):
            say(page, text)

    with served(folder) as address:
        return photographed(address, talk)


def captioning(runs: Path) -> Image.Image:
    """Where the model of docs/captioning.md looked."""
    folder = once(runs / "captions", "finetune_picture", "--config", "tiny_cpu")
    return Image.open(folder / "caption_attention.png")


TAKEN: dict[str, Callable[[Path], Image.Image]] = {
    "report": report,
    "attention": attention,
    "captioning": captioning,
    "funnel": funnel,
    "comparison": comparison,
    "scaling": scaling,
    "plan": plan,
    "chat": chat,
}


# ---- how they are taken


def photographed(place: Path | str, prepare: Callable[[Page], None] | None = None) -> Image.Image:
    """The upper part of a page, light, as wide as the docs' column can show."""
    address = place.as_uri() if isinstance(place, Path) else place
    with chromium() as browser, tempfile.NamedTemporaryFile(suffix=".png") as file:
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto(address)
        if prepare:
            prepare(page)
        page.screenshot(path=file.name)
        return Image.open(file.name).convert("RGB")


def say(page: Page, text: str) -> None:
    """Type a turn and wait until its answer has ended."""
    page.fill("#text", text)
    page.press("#text", "Enter")
    expect(page.locator("#halt")).to_be_hidden(timeout=60_000)
    expect(page.locator("#text")).to_have_value("")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of the model, which ends with the block."""
    command = [sys.executable, "-m", "hfscale.cli", "serve", "--model", folder.name, "--port", "0"]
    with subprocess.Popen(
        command,
        cwd=folder.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    ) as server:
        try:
            yield next(
                found[0] for line in server.stdout if (found := re.search(r"http://[\w.:]+", line))
            )
        finally:
            server.terminate()


def save(picture: Image.Image, path: Path) -> None:
    """As a PNG of few colours, which is small and looks the same."""
    if picture.width > MOST_WIDTH:
        height = round(picture.height * MOST_WIDTH / picture.width)
        picture = picture.resize((MOST_WIDTH, height), Image.Resampling.LANCZOS)
    for colours in (128, 64, 32):
        # Without kmeans the colour of a small part becomes another one.
        few = picture.convert("RGB").quantize(colours, kmeans=3, dither=Image.Dither.NONE)
        few.save(path, optimize=True)
        if path.stat().st_size < MOST_BYTES:
            return
    raise SystemExit(f"{path}: {path.stat().st_size:,} bytes, at most {MOST_BYTES:,}")


def main() -> None:
    """Make the pictures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(TAKEN), default=list(TAKEN))
    parser.add_argument("--runs", type=Path, help="where the runs lie; default: a folder that goes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        runs = args.runs or Path(temporary)
        runs.mkdir(parents=True, exist_ok=True)
        PICTURES.mkdir(exist_ok=True)
        for name in args.only:
            path = PICTURES / f"{name}.png"
            save(TAKEN[name](runs.resolve()), path)
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    main()

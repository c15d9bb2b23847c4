"""A sentence of the text that a model was held against: what it reads there is nearer to what it
learned than any sentence that people think of.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from hfscale.process import InputError

# From one end of a sentence, or of a line, to the next; long enough to look at, short enough to
# show.
SENTENCE = re.compile(
    r"(?:^|(?<=[.!?。！？]\s)|(?<=[。！？]))[^\s.!?。！？][^.!?。！？\n]{14,118}[.!?。！？]", re.M
)
LARGEST_BYTES = 200_000_000  # of a run's text; more is not read again for one sentence


def held_out_sentence(
    run_folder: str, fits: Callable[[str], bool], *, trust_remote_code: bool = False
) -> tuple[str | None, str | None]:
    """The first whole sentence of a run's held-out text that `fits`, or else why there is none;
    neither where the folder names no run.
    """
    record = Path(run_folder, "run.json")
    if not record.is_file():
        return None, None
    size = _text_bytes(record)
    if size is None or size > LARGEST_BYTES:
        return None, "its text is a stream, or too large to be read again"

    from hfscale.data.splits import load_run_splits

    try:
        texts = load_run_splits(run_folder, trust_remote_code=trust_remote_code)["validation"]
    except InputError as error:
        return None, str(error).removeprefix("source: missing, and ").partition(";")[0]
    sentence = first_sentence(texts["text"], fits)
    return sentence, None if sentence else "none of its held-out text is short enough"


def first_sentence(texts: Iterable[str], fits: Callable[[str], bool]) -> str | None:
    """The first whole sentence of the texts that `fits`; None: there is none."""
    for text in texts:
        for found in SENTENCE.finditer(text):
            if fits(found[0]):
                return found[0]
    return None


def _text_bytes(record: Path) -> int | None:
    """Of all parts of a run's text; None: nobody counted them."""
    try:
        sizes = json.loads(record.read_text("utf-8"))["data"]["bytes"].values()
        return sum(sizes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None

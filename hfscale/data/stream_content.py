"""What a stream reads, known by its content: two streams of equal names can differ."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import HfApi
from tqdm.auto import tqdm

from hfscale.data.embedded import load_embedded
from hfscale.data.files import find_files, suffix_of
from hfscale.data.fingerprints import text_fingerprint
from hfscale.process import InputError
from hfscale.user_code import file_of, names_function

MOST_THREADS = 8


def stream_fingerprint(sources: Sequence[str]) -> str:
    """SHA-256 over what the sources of a stream hold, in their order (16 hexadecimal digits).

    Of files all bytes are read, once; of a function of the user's own it is the file in which it
    stands, of a data set on the Hub its newest commit.

    Raises InputError: the Hub does not say which commit that is.
    """
    digest = hashlib.sha256()
    for source in sources:
        digest.update(_content_of(source).encode() + b"\0")
    return digest.hexdigest()[:16]


def _content_of(source: str) -> str:
    """A text that is another one where the source holds something else."""
    if source.startswith("embedded:"):
        return text_fingerprint(load_embedded(source))
    if names_function(source):
        return _digest_of_files([file_of(source)])
    files = find_files(source) or _saved_files(source)
    if files:
        return _digest_of_files(files)
    try:
        return f"commit {HfApi().dataset_info(source).sha}"
    except Exception as error:  # the Hub client's errors have no common base
        raise InputError(
            f"source {source}: the Hub does not say which commit it holds "
            f"({' '.join(str(error).split())[:200]}); try again, or stream local files"
        ) from None


def _saved_files(source: str) -> list[Path]:
    """The text in a folder of `save_to_disk`."""
    return sorted(Path(source).rglob("*.arrow"))


def _digest_of_files(files: Sequence[Path]) -> str:
    """Over endings, which say how a file is read, and bytes."""
    num_bytes = sum(path.stat().st_size for path in files)
    threads = min(MOST_THREADS, os.cpu_count() or 1)
    digest = hashlib.sha256()
    with (
        tqdm(
            desc="Reading the stream once, to know it again",
            total=num_bytes,
            unit="B",
            unit_scale=True,
        ) as progress,
        ThreadPoolExecutor(threads) as pool,
    ):
        digests = pool.map(_digest_of, files)
        for path, of_file in zip(files, digests, strict=True):
            digest.update(suffix_of(path).encode() + b"\0" + of_file)
            progress.update(path.stat().st_size)
    return digest.hexdigest()


def _digest_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()

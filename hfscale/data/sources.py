"""Text sources -> a `datasets.Dataset`, or a stream, with one document per row."""

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, Value, concatenate_datasets
from datasets.fingerprint import Hasher

from hfscale import __version__
from hfscale.arguments import SourceArguments
from hfscale.data.caches import generated, kept, kept_by_library, stamps_of
from hfscale.data.embedded import EMBEDDED, TEXT_FEATURES, load_embedded
from hfscale.data.files import (
    ARCHIVES,
    KINDS,
    about_endings,
    find_files,
    kind_of,
    open_bytes,
    reading,
)
from hfscale.data.generated import load_generated
from hfscale.data.readers import NO_TEXT, READ_FEATURES, read_documents
from hfscale.data.web_pages import extractor_version, is_html
from hfscale.folders import DATA_CARD
from hfscale.manifest import has_manifest, read_manifest
from hfscale.process import InputError, is_main_rank
from hfscale.shown import show_text
from hfscale.user_code import names_function

Documents: TypeAlias = Dataset | IterableDataset

SHOWN_PROBLEMS = 5
LOOKED_AT = 100  # documents, for HTML
STREAM_SHARDS = 64  # of a stored data set, for ranks and workers to share
READ_AT_ONCE = 2**20  # bytes of an archive that is tried out


@dataclass(frozen=True)
class ReadSettings:
    """How a source is read; see `load_documents`."""

    text_column: str
    sample_by: str
    dataset_config_name: str | None
    split: str
    on_error: str | None
    streaming: bool


def load_documents(
    source: str | list[str],
    *,
    text_column: str = "text",
    sample_by: str = "document",
    dataset_config_name: str | None = None,
    split: str = "train",
    on_error: str | None = None,
    streaming: bool = False,
    dropped: dict[str, int] | None = None,
    problems: list[str] | None = None,
    may_be_empty: bool = False,
) -> Documents:
    """One row per document, in a column `text`; documents without a visible character are left out.

    A source is `embedded:<name>`, `my_file.py:function` (a generator function of the user's own), a
    file, a folder, a glob (the endings of `KINDS`, also as .gz, .zst or .bz2), a data set saved
    with `save_to_disk`, or a Hub id. `sample_by` says what one document of a text file is: the
    file, a paragraph or a line. `split` picks from saved and Hub data sets. `on_error="skip"`
    leaves out a row of .jsonl, .json, .csv or .tsv, a document of a text file, or one that a
    function gives, that cannot be read, and names it on stderr, as files without text and files of
    unknown endings are. What is left out is added to the counts in `dropped`, by reason: `empty`,
    `unreadable`; `problems` takes each unreadable one's place and reason. `streaming` gives an
    `IterableDataset`, which reads while it is iterated, so errors come then and both stay as they
    are.

    Raises InputError: nothing there, nothing readable, a missing column, or (unless it
    `may_be_empty`) no text at all.
    """
    settings = ReadSettings(
        text_column=text_column,
        sample_by=sample_by,
        dataset_config_name=dataset_config_name,
        split=split,
        on_error=on_error,
        streaming=streaming,
    )
    names = [source] if isinstance(source, str) else source
    parts: list[Documents] = []
    notes: list[str] = []
    for name in names:
        with reading(f"source {name}"):
            parts += _load_source(name, settings, notes)
    place = f"source {', '.join(names)}"
    with reading(place):
        documents = _stream(parts) if streaming else _keep_texts(parts, dropped, problems)
        if not may_be_empty and next(iter(documents), None) is None:
            raise InputError(f"{place}: no text in it (only blank lines or empty documents)")
    say(notes)
    return documents


def _load_source(name: str, settings: ReadSettings, notes: list[str]) -> list[Documents]:
    """The parts of one source; `notes` takes what is to be said of its files."""
    is_made = name.startswith("embedded:") or names_function(name)
    files = find_files(name) if name and not is_made else []
    if settings.split != "train" and (is_made or files):
        raise InputError(
            f"split {settings.split}: source {name} has no splits, only saved and Hub data sets "
            "have; leave --split out"
        )
    if name.startswith("embedded:"):
        return [load_embedded(name)]
    if names_function(name):
        generated = load_generated(
            name,
            text_column=settings.text_column,
            on_error=settings.on_error,
            streaming=settings.streaming,
        )
        return [generated]
    if files:
        notes += about_endings(name, files)
        return _load_files(files, name, settings)
    data = load_saved(name, settings.dataset_config_name, settings.split, settings.streaming)
    return [_text_only(data, settings.text_column, name)]


def read_source(args: SourceArguments, source: list[str], **settings: Any) -> Documents:
    """`load_documents` as a recipe's arguments say; `settings` are more of its arguments."""
    return load_documents(
        source,
        text_column=args.text_column,
        sample_by=args.sample_by,
        on_error=args.on_error,
        dataset_config_name=args.dataset_config_name,
        **settings,
    )


# ---- what is left out, and what is said


def say(lines: Iterable[str]) -> None:
    """Lines on stderr, of one process of a launch."""
    if is_main_rank():
        for line in lines:
            show_text(line, file=sys.stderr)


def about_html(documents: Dataset, source: list[str]) -> list[str]:
    """What to say if there are HTML pages among the first documents."""
    texts = documents.take(min(LOOKED_AT, len(documents)))["text"]
    num_pages = sum(map(is_html, texts))
    if not num_pages:
        return []
    return [
        f"source {', '.join(source)}: {num_pages} of the first {len(texts)} texts are HTML; "
        "hfscale prepare_data --extract_html true takes their text out"
    ]


def _keep_texts(
    parts: list[Dataset], dropped: dict[str, int] | None, problems: list[str] | None
) -> Dataset:
    """One data set without empty texts; what is left out is counted and named."""
    rows = concatenate_datasets(parts)
    named: list[str] = []
    if "problem" in rows.column_names:
        named = rows.data.column("problem").drop_null().to_pylist()
    without_text = [problem for problem in named if problem.endswith(NO_TEXT)]
    unreadable = [problem for problem in named if not problem.endswith(NO_TEXT)]
    documents = kept(
        "text",
        ["not empty", rows._fingerprint],
        lambda folder: rows.select_columns("text").filter(
            _has_text,
            input_columns="text",
            cache_file_name=str(folder / "indices.arrow"),
            desc="Looking for empty texts",
        ),
    )
    if len(documents):
        _say_left_out(without_text, "files without text")
    _say_left_out(unreadable, "documents that could not be read")
    if dropped is not None:
        empty = len(rows) - len(documents) - len(unreadable)
        # Adding counters leaves out what is 0.
        counts = Counter(dropped) + Counter(unreadable=len(unreadable), empty=empty)
        dropped.update(counts)
    if problems is not None:
        problems += unreadable
    return documents


def _say_left_out(problems: list[str], kind: str) -> None:
    say(f"left out: {problem}" for problem in problems[:SHOWN_PROBLEMS])
    if len(problems) > SHOWN_PROBLEMS:
        say([f"left out: {len(problems):,} in all, {kind}"])


def _stream(parts: list[Documents]) -> IterableDataset:
    """One stream without empty texts; what is left out is named when it is met."""
    streams = [
        part
        if isinstance(part, IterableDataset)
        else part.to_iterable_dataset(min(len(part), STREAM_SHARDS))
        for part in parts
    ]
    rows = concatenate_datasets(streams)
    return rows.filter(_has_text, input_columns=list(rows.features)).select_columns("text")


def _has_text(text: str | None, problem: str | None = None) -> bool:
    if problem:
        show_text(f"left out: {problem}", file=sys.stderr)
    return bool(text and text.strip())


# ---- files


def _load_files(files: list[Path], name: str, settings: ReadSettings) -> list[Documents]:
    """One part for the files of each kind, which come in the order of their kinds."""
    # The builders log what their errors say.
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
    parts: list[Documents] = []
    for kind, group in groupby(files, kind_of):
        paths = [str(path.absolute()) for path in group]
        if kind in ("parquet", "arrow"):
            parts.append(_load_tables(kind, paths, name, settings))
        else:
            parts.append(_load_texts(kind, paths, settings))
    return parts


def _load_tables(kind: str, paths: list[str], name: str, settings: ReadSettings) -> Documents:
    """.parquet or .arrow, by the builder of `datasets` for it."""
    for path in paths:
        if Path(path).suffix.lower() in ARCHIVES:
            _check_archive(path)
    return _text_only(load_tables(kind, paths, settings.streaming), settings.text_column, name)


def load_tables(kind: str, paths: list[str], streaming: bool = False) -> Documents:
    """All rows of .parquet or .arrow files, in the order of the files."""
    if streaming:
        return datasets.load_dataset(kind, data_files=paths, split="train", streaming=True)
    return kept(
        "tables",
        [kind, stamps_of(paths)],
        lambda folder: datasets.load_dataset(
            kind, data_files=paths, split="train", cache_dir=str(folder)
        ),
    )


def _load_texts(kind: str, paths: list[str], settings: ReadSettings) -> Documents:
    """All other files, as `read_documents` does."""
    reader = extractor_version(paths[0]) if kind == "html" else __version__
    arguments = {
        "files": paths,
        # They key the cache: a file that changed is read again.
        "stamps": [(reader, *stamp) for stamp in stamps_of(paths)],
        "kind": kind,
        "unit": settings.sample_by,
        "text_column": settings.text_column,
        "on_error": settings.on_error,
    }
    if settings.streaming:
        return IterableDataset.from_generator(
            read_documents, gen_kwargs=arguments, features=READ_FEATURES
        )
    return generated(read_documents, arguments, READ_FEATURES)


def _check_archive(path: str) -> None:
    """Raises InputError for an archive that is cut short, which the builders take for whole."""
    with reading(path), open_bytes(path) as file:
        while file.read(READ_AT_ONCE):
            pass


# ---- saved data sets, and the Hub


def load_saved(name: str, config: str | None, split: str, streaming: bool = False) -> Documents:
    """A data set from disk if saved there, else from the Hub; raises InputError where there is no
    such thing.
    """
    if name and Path(name).is_dir():
        return _load_from_disk(name, split)
    if _looks_like_path(name):
        raise InputError(f"source {name}: no such file or folder")
    try:
        return _load_from_hub(name, config, split, streaming)
    except InputError:
        raise
    except Exception as error:  # the Hub client's errors have no common base
        offline = os.environ.get("HF_HUB_OFFLINE") == "1"
        reason = "the Hub is not reachable" if offline else " ".join(str(error).split())[:200]
        raise InputError(
            f"source {name}: not a file or folder here, and not loadable as a Hub data set "
            f"({reason}); offline there are {', '.join(EMBEDDED)} and local files"
        ) from None


def _load_from_disk(name: str, split: str) -> Dataset:
    """Its fingerprint, by which rows made of it are found again, is one of its files."""
    data = datasets.load_from_disk(name)
    if isinstance(data, DatasetDict):
        if split not in data:
            raise InputError(f"source {name}: no split '{split}'; it has {', '.join(data)}")
        data = data[split]
    data._fingerprint = Hasher.hash([data._fingerprint, _identity_of(Path(name).absolute())])
    return data


def _identity_of(folder: Path) -> Any:
    """What changes whenever a file of a saved data set does."""
    for written in (folder, folder.parent):
        listed = read_manifest(written)["files"] if has_manifest(written) else {}
        digests = [listed[name] for name in listed if (written / name).is_relative_to(folder)]
        if digests:
            return digests
    if (folder / DATA_CARD).is_file():
        say([f"source {folder}: it has no manifest.json, so damage to its files is not noticed"])
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return stamps_of([str(path) for path in files if not path.match("cache-*.arrow")])


def _load_from_hub(name: str, config: str | None, split: str, streaming: bool) -> Documents:
    # In CSV files "NA" and "null" are words. The readers of other files do not know this argument.
    try:
        builder = datasets.load_dataset_builder(name, config, na_filter=False)
    except ValueError:
        builder = datasets.load_dataset_builder(name, config)
    if streaming:
        return builder.as_streaming_dataset(split=split)

    def load() -> Dataset:
        builder.download_and_prepare()
        return builder.as_dataset(split=split)

    return kept_by_library(Path(builder.cache_dir), load)


def _looks_like_path(name: str) -> bool:
    """Whether a name means a file or folder and no Hub id, which is `name` or `owner/name`."""
    begins_like_one = name.startswith((".", "/", "~"))
    is_glob = any(character in name for character in "*?[")
    ends_like_one = Path(name).suffix.lower() in (*KINDS, *ARCHIVES)
    return begins_like_one or is_glob or ends_like_one or name.count("/") > 1


def _text_only(data: Documents, text_column: str, name: str) -> Documents:
    columns = data.column_names
    if not columns:  # some streams only show their rows
        columns = list(next(iter(data), {}))
    if text_column not in columns:
        raise InputError(
            f"source {name}: no column '{text_column}'; it has {', '.join(columns)} (choose with "
            "--text_column)"
        )
    kind = data.features[text_column] if data.features else Value("string")
    if getattr(kind, "dtype", None) not in ("string", "large_string"):
        raise InputError(f"source {name}: column '{text_column}' holds {kind}, not text")
    data = data.select_columns([text_column])
    if text_column != "text":
        data = data.rename_column(text_column, "text")
    if data.features == TEXT_FEATURES:
        return data
    if isinstance(data, IterableDataset):
        return data.cast(TEXT_FEATURES)
    return kept(
        "text",
        ["cast", data._fingerprint],
        lambda folder: data.cast(TEXT_FEATURES, cache_file_name=str(folder / "text.arrow")),
    )

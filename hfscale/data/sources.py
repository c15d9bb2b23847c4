"""Text sources -> a `datasets.Dataset` with one document per row, and its split into train and
validation.
"""

import ast
import contextlib
import hashlib
import json
import logging
import math
import os
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, Features, IterableDataset, Value, concatenate_datasets

from hfscale import __version__
from hfscale.arguments import DataArguments, SourceArguments, StreamArguments
from hfscale.data.files import (
    ARCHIVES,
    KINDS,
    about_endings,
    find_files,
    kind_of,
    open_bytes,
    reading,
)
from hfscale.data.readers import NO_TEXT, read_documents
from hfscale.data.web_pages import extractor_version, is_html
from hfscale.process import InputError, is_main_rank

EMBEDDED = ("embedded:python-docs", "embedded:python-code")
TEXT_FEATURES = Features({"text": Value("string")})
READ_FEATURES = Features(
    {"text": Value("string"), "problem": Value("string")}
)  # one of the two; none: empty
SHOWN_PROBLEMS = 5
LOOKED_AT = 100  # documents, for HTML
STREAM_SHARDS = 64  # of a stored data set, for ranks and workers to share
HELD_OUT_CHARACTERS = 2_000_000  # of a stream: in memory, and scored at each evaluation


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
) -> Dataset | IterableDataset:
    """One row per document, in a column `text`; documents without a visible character are left out.

    A source is `embedded:<name>`, a file, a folder, a glob (the endings of `KINDS`, also as .gz,
    .zst or .bz2), a data set saved with `save_to_disk`, or a Hub id. `sample_by` says what one
    document of a text file is: the file, a paragraph or a line. `split` picks from saved and Hub
    data sets. `on_error="skip"` leaves out a row of .jsonl, .json, .csv or .tsv, or a document of a
    text file, that cannot be read, and names it on stderr, as files without text and files of
    unknown endings are. What is left out is added to the counts in `dropped`, by reason: `empty`,
    `unreadable`; `problems` takes each unreadable one's place and reason. `streaming` gives an
    `IterableDataset`, which reads while it is iterated, so errors come then and both stay as they
    are.

    Raises InputError: nothing there, nothing readable, a missing column, or (unless it
    `may_be_empty`) no text at all.
    """
    names = [source] if isinstance(source, str) else source
    parts, notes = [], []
    for name in names:
        with reading(f"source {name}"):
            if name.startswith("embedded:"):
                key = {"name": name, "python": sys.version, "hfscale": __version__}
                parts.append(
                    Dataset.from_generator(_read_embedded, gen_kwargs=key, features=TEXT_FEATURES)
                )
            elif name and (files := find_files(name)):
                notes += about_endings(name, files)
                parts += _load_files(files, name, text_column, sample_by, on_error, streaming)
            else:
                data = load_saved(name, dataset_config_name, split, streaming)
                parts.append(_text_only(data, text_column, name))
    with reading(place := f"source {', '.join(names)}"):
        documents = _stream(parts) if streaming else _keep_texts(parts, dropped, problems)
        if not may_be_empty and next(iter(documents), None) is None:
            raise InputError(f"{place}: no text in it (only blank lines or empty documents)")
    say(notes)
    return documents


def say(lines: Iterable[str]) -> None:
    """Lines on stderr, of one process of a launch."""
    if is_main_rank():
        for line in lines:
            print(line, file=sys.stderr)


def _keep_texts(
    parts: list[Dataset], dropped: dict[str, int] | None, problems: list[str] | None
) -> Dataset:
    """One data set without empty texts; what is left out is counted and named."""
    rows = concatenate_datasets(parts)
    said = (
        rows.data.column("problem").drop_null().to_pylist()
        if "problem" in rows.column_names
        else []
    )
    unreadable = [problem for problem in said if not problem.endswith(NO_TEXT)]
    documents = rows.select_columns("text").filter(
        _has_text, input_columns="text", desc="Looking for empty texts"
    )
    empty = len(rows) - len(documents) - len(unreadable)
    if len(documents):
        _say_left_out(
            [problem for problem in said if problem.endswith(NO_TEXT)], "files without text"
        )
    _say_left_out(unreadable, "documents that could not be read")
    if dropped is not None:
        dropped |= Counter(dropped) + Counter(unreadable=len(unreadable), empty=empty)
    if problems is not None:
        problems += unreadable
    return documents


def _say_left_out(problems: list[str], what: str) -> None:
    say(f"left out: {problem}" for problem in problems[:SHOWN_PROBLEMS])
    if len(problems) > SHOWN_PROBLEMS:
        say([f"left out: {len(problems):,} in all, {what}"])


def _stream(parts: list[Dataset | IterableDataset]) -> IterableDataset:
    """One stream without empty texts; what is left out is named when it is met."""
    rows = concatenate_datasets(
        [
            part
            if isinstance(part, IterableDataset)
            else part.to_iterable_dataset(min(len(part), STREAM_SHARDS))
            for part in parts
        ]
    )
    return rows.filter(_has_text, input_columns=list(rows.features)).select_columns("text")


def _has_text(text: str | None, problem: str | None = None) -> bool:
    if problem:
        print(f"left out: {problem}", file=sys.stderr)
    return bool(text and text.strip())


def read_source(args: SourceArguments, source: list[str], **how: Any) -> Dataset | IterableDataset:
    """`load_documents` as a recipe's arguments say."""
    return load_documents(
        source,
        text_column=args.text_column,
        sample_by=args.sample_by,
        on_error=args.on_error,
        dataset_config_name=args.dataset_config_name,
        **how,
    )


def load_splits(
    args: DataArguments,
    *,
    seed: int,
    streaming: bool = False,
    dropped: dict[str, int] | None = None,
) -> DatasetDict:
    """The documents that `args` name, as `train` and `validation`. Of a stored `validation_source`
    with a split of that name, it is that split.

    Raises InputError: as the functions that it calls, or validation text that is all in the
    training text.
    """
    documents = read_source(args, args.source, streaming=streaming, dropped=dropped)
    if not streaming:
        say(about_html(documents, args.source))
    if not args.validation_source:
        return split_documents(
            documents,
            split_by=args.split_by,
            validation_fraction=args.validation_fraction,
            seed=seed,
        )
    split = "train"
    if len(args.validation_source) == 1:
        split = _validation_split(args.validation_source[0], args.dataset_config_name)
    held_out = read_source(args, args.validation_source, split=split)
    if not streaming:
        _check_apart(documents, held_out, args)
    return DatasetDict(train=documents, validation=held_out)


def about_html(documents: Dataset, source: list[str]) -> list[str]:
    """What to say if there are HTML pages among the first documents."""
    first = documents.take(min(LOOKED_AT, len(documents)))["text"]
    pages = sum(map(is_html, first))
    if not pages:
        return []
    return [
        f"source {', '.join(source)}: {pages} of the first {len(first)} texts are HTML; hfscale "
        "prepare_data --extract_html true takes their text out"
    ]


def _validation_split(name: str, config: str | None) -> str:
    """The split of a stored data set, or of one on the Hub, that a validation source means."""
    try:
        if (Path(name) / "dataset_dict.json").is_file():
            splits = json.loads((Path(name) / "dataset_dict.json").read_text("utf-8"))["splits"]
        elif name.startswith("embedded:") or find_files(name):
            return "train"
        else:
            splits = datasets.get_dataset_split_names(name, config)
    except Exception:  # what is wrong with it is said when it is read
        return "train"
    return "validation" if "validation" in splits else "train"


def _check_apart(train: Dataset, held_out: Dataset, args: DataArguments) -> None:
    """Say how many held-out documents are trained on too; raises InputError if the two texts are
    the same.
    """
    held_out_texts = set(map(_digest, held_out["text"]))
    trained_on, is_same = set(), True
    for batch in train.iter(1000):
        digests = set(map(_digest, batch["text"]))
        trained_on |= digests & held_out_texts
        is_same = is_same and digests <= held_out_texts
    if is_same and trained_on == held_out_texts:
        raise InputError(
            f"validation_source {', '.join(args.validation_source)}: its documents are those of "
            f"source {', '.join(args.source)}; give other text, or leave it out to hold out a part"
        )
    if trained_on:
        say(
            [
                f"validation_source: {len(trained_on):,} of its {len(held_out_texts):,} different "
                "documents are in the training text too"
            ]
        )


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def load_parts(
    args: StreamArguments, *, seed: int, dropped: dict[str, int] | None = None
) -> list[DatasetDict]:
    """As `load_splits`, as a stream if asked for; each source of a mixture is one part, split by
    itself.

    Raises InputError: as there, or weights that do not fit the sources.
    """
    weights, temperature = args.source_weights, args.source_temperature
    if weights is not None:
        check_weights(weights, len(args.source))
    if temperature is not None and (args.streaming or weights is not None):
        raise InputError(
            "source_temperature: not with --source_weights, and not with --streaming, which does "
            "not know the sizes of sources; give weights alone"
        )
    groups = (
        [args.source]
        if weights is None and temperature is None
        else [[name] for name in args.source]
    )
    return [
        load_splits(
            replace(args, source=group), seed=seed, streaming=args.streaming, dropped=dropped
        )
        for group in groups
    ]


def check_weights(weights: list[float], num_sources: int) -> None:
    """Raises InputError unless there is a number from 0 up for each source, and not all are 0."""
    if (
        len(weights) != num_sources
        or not all(0 <= weight < math.inf for weight in weights)
        or not any(weights)
    ):
        raise InputError(
            f"source_weights: got {weights} for {num_sources} source(s); expected a number from 0 "
            "up for each, not all 0"
        )


def join_parts(parts: list[DatasetDict], args: StreamArguments) -> DatasetDict:
    """All training and all validation documents; a `validation_source` is in every part and counts
    once.
    """
    validation = [part["validation"] for part in (parts[:1] if args.validation_source else parts)]
    return DatasetDict(
        train=concatenate_datasets([part["train"] for part in parts]),
        validation=concatenate_datasets(validation),
    )


def load_run_splits(run_folder: str) -> DatasetDict:
    """The `train` and `validation` documents of a training run, found again through its run.json.

    Raises InputError: no run.json that names its data, or the source is no longer the text of that
    run.
    """
    try:
        record = json.loads(Path(run_folder, "run.json").read_text("utf-8"))
        args = StreamArguments(
            **{
                f.name: record["config"][f.name]
                for f in fields(StreamArguments)
                if f.name in record["config"]
            }
        )
        seed, fingerprint = record["config"]["seed"], record["data"]["fingerprint"]["validation"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"source: missing, and {run_folder} has no run.json that names the text of a run"
        ) from None
    if "source" not in record["config"]:
        learned = ", ".join(record["config"].get("task_source") or ["something else"])
        raise InputError(
            f"source: missing, and {run_folder} was not trained on text but on {learned}; give a "
            "text, or the task"
        )
    documents = join_parts(load_parts(args, seed=seed), args)
    if text_fingerprint(documents["validation"]) != fingerprint:
        raise InputError(
            f"source: missing, and {', '.join(args.source)} is no longer the text of {run_folder}"
        )
    return documents


def split_documents(
    documents: Dataset | IterableDataset, *, split_by: str, validation_fraction: float, seed: int
) -> DatasetDict:
    """Train and validation parts: documents drawn at random with `seed`, or the last part of the
    text by characters.

    Too few documents to draw from are split by position too, which is said. Of a stream a hash of
    text and seed says on which side a document is, so equal texts are on the same. Its train part
    is a stream; of the other the first 2 million characters are kept in memory.

    Raises InputError: the fraction is outside (0, 1), or a stream's last part.
    """
    if not 0 < validation_fraction < 1:
        raise InputError(
            f"validation_fraction: got {validation_fraction}, expected a number between 0 and 1"
        )
    if isinstance(documents, IterableDataset):
        return _split_stream(documents, split_by, validation_fraction, seed)
    if split_by == "position":
        return _split_by_position(documents, validation_fraction)
    held_out = max(1, round(len(documents) * validation_fraction))
    if held_out >= len(documents):
        count = "1 document" if len(documents) == 1 else f"{len(documents)} documents"
        say(
            [
                f"the source holds {count}, too few to draw some at random: the last "
                f"{validation_fraction:.1%} of the text is held out (as with --split_by position)"
            ]
        )
        return _split_by_position(documents, validation_fraction)
    parts = documents.train_test_split(test_size=held_out, seed=seed)
    return DatasetDict(train=parts["train"], validation=parts["test"])


def _split_stream(
    documents: IterableDataset, split_by: str, fraction: float, seed: int
) -> DatasetDict:
    if split_by == "position":
        raise InputError(
            "split_by position: a stream has no last part; use --split_by document or "
            "--validation_source"
        )
    train, held_out = (
        documents.filter(
            _is_held_out,
            input_columns="text",
            fn_kwargs={"wanted": wanted, "fraction": fraction, "seed": seed},
        )
        for wanted in (False, True)
    )
    texts, room = [], HELD_OUT_CHARACTERS
    for document in held_out:
        texts.append(document["text"])
        room -= len(document["text"])
        if room <= 0:
            break
    if not texts:
        raise InputError(
            f"validation_fraction: {fraction} holds out none of the stream's documents (equal ones "
            "are on the same side); raise it, or give a --validation_source"
        )
    if next(iter(train), None) is None:
        raise InputError(
            f"validation_fraction: {fraction} holds out all of the stream's documents (equal ones "
            "are on the same side); lower it, or give a --validation_source"
        )
    return DatasetDict(train=train, validation=_documents(texts))


def _is_held_out(text: str, wanted: bool, fraction: float, seed: int) -> bool:
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=str(seed).encode()).digest()
    return (int.from_bytes(digest, "big") < fraction * 2**64) == wanted


def text_fingerprint(documents: Dataset | IterableDataset) -> str:
    """SHA-256 over the texts in their order (16 hexadecimal digits): equal text, equal
    fingerprint.
    """
    digest = hashlib.sha256()
    for batch in documents.iter(100):
        for text in batch["text"]:
            digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def _split_by_position(documents: Dataset, fraction: float) -> DatasetDict:
    """Documents keep their order; the one that holds the boundary is cut there."""
    texts, train, validation = documents["text"][:], [], []
    left = int(sum(map(len, texts)) * (1 - fraction))
    for text in texts:
        train.append(text[:left])
        validation.append(text[left:])
        left = max(0, left - len(text))
    return DatasetDict(train=_documents(train), validation=_documents(validation))


def _documents(texts: list[str]) -> Dataset:
    return Dataset.from_dict({"text": list(filter(None, texts))}, features=TEXT_FEATURES)


def _read_embedded(name: str, python: str, hfscale: str) -> Iterator[dict]:
    """The standard library's code, or the language reference's topics and each module's docstrings.

    `python` and `hfscale` only key the cache: the text is that of one Python, read by one version
    of this module.
    """
    from pydoc_data.topics import topics

    if name not in EMBEDDED:
        raise InputError(f"source {name}: unknown embedded text; there are {', '.join(EMBEDDED)}")
    docs = name == "embedded:python-docs"
    yield from ({"text": topics[topic]} for topic in sorted(topics) if docs)
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idle_test",
        "lib2to3",
        "__pycache__",
    }
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if skipped.isdisjoint(parts) and not parts[0].startswith(("config-", "_sysconfigdata")):
            with contextlib.suppress(
                UnicodeDecodeError
            ):  # the few files that declare another encoding
                code = path.read_text("utf-8")
                yield {"text": _docstrings(code) if docs else code}


def _docstrings(code: str) -> str:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [
        ast.get_docstring(node)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, documented)
    ]
    return "\n\n".join(text for text in docstrings if text)


def _load_files(
    files: list[Path],
    name: str,
    text_column: str,
    sample_by: str,
    on_error: str | None,
    streaming: bool,
) -> list[Dataset | IterableDataset]:
    """.parquet and .arrow by the `datasets` builder for each, all others as `read_documents`
    does.
    """
    logging.getLogger("datasets.packaged_modules").setLevel(
        logging.CRITICAL
    )  # they log what the error says
    parts = []
    for kind, group in groupby(files, kind_of):
        paths = [str(path.absolute()) for path in group]
        if kind in ("parquet", "arrow"):
            for path in (path for path in paths if Path(path).suffix.lower() in ARCHIVES):
                _read_whole(path)
            data = datasets.load_dataset(kind, data_files=paths, split="train", streaming=streaming)
            parts.append(_text_only(data, text_column, name))
            continue
        reader = extractor_version(paths[0]) if kind == "html" else __version__
        stamps = [
            (reader, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths
        ]  # changed: read again
        how = {
            "files": paths,
            "stamps": stamps,
            "kind": kind,
            "unit": sample_by,
            "text_column": text_column,
            "on_error": on_error,
        }
        make = IterableDataset.from_generator if streaming else Dataset.from_generator
        parts.append(make(read_documents, gen_kwargs=how, features=READ_FEATURES))
    return parts


def _read_whole(path: str) -> None:
    """Raises InputError for an archive that is cut short, which the builders take for whole."""
    with reading(path), open_bytes(path) as file:
        while file.read(2**20):
            pass


def load_saved(
    name: str, config: str | None, split: str, streaming: bool = False
) -> Dataset | IterableDataset:
    """A data set from disk if saved there, else from the Hub; raises InputError where there is no
    such thing.
    """
    if name and Path(name).is_dir():
        data = datasets.load_from_disk(name)
        if isinstance(data, DatasetDict) and split not in data:
            raise InputError(f"source {name}: no split '{split}'; it has {', '.join(data)}")
        return data if isinstance(data, Dataset) else data[split]
    looks_like_path = (
        name.startswith((".", "/", "~")) or name.count("/") > 1 or any(c in name for c in "*?[")
    )
    if looks_like_path or Path(name).suffix.lower() in (*KINDS, *ARCHIVES):
        raise InputError(f"source {name}: no such file or folder")
    how = {"name": config, "split": split, "streaming": streaming}
    try:
        with contextlib.suppress(
            ValueError
        ):  # of other files than CSV, whose readers do not know the argument
            return datasets.load_dataset(name, **how, na_filter=False)  # "NA" and "null" are words
        return datasets.load_dataset(name, **how)
    except Exception as error:  # the Hub client's errors have no common base
        offline = os.environ.get("HF_HUB_OFFLINE") == "1"
        reason = "the Hub is not reachable" if offline else " ".join(str(error).split())[:200]
        raise InputError(
            f"source {name}: not a file or folder here, and not loadable as a Hub data set "
            f"({reason}); offline there are {', '.join(EMBEDDED)} and local files"
        ) from None


def _text_only(
    data: Dataset | IterableDataset, text_column: str, name: str
) -> Dataset | IterableDataset:
    columns = data.column_names or list(next(iter(data), {}))  # some streams only show their rows
    if text_column not in columns:
        raise InputError(
            f"source {name}: no column '{text_column}'; it has {', '.join(columns)} (choose with "
            "--text_column)"
        )
    kind = data.features[text_column] if data.features else Value("string")
    if getattr(kind, "dtype", None) not in ("string", "large_string"):
        raise InputError(f"source {name}: column '{text_column}' holds {kind}, not text")
    data = data.select_columns([text_column])
    return (data if text_column == "text" else data.rename_column(text_column, "text")).cast(
        TEXT_FEATURES
    )

"""Text sources -> a `datasets.Dataset` with one document per row, and its split into train and validation."""

import ast
import glob
import gzip
import hashlib
import io
import json
import logging
import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import datasets
import zstandard
from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets

from hfscale import __version__
from hfscale.config import DataArguments, InputError

BUILDERS = {".txt": "text", ".md": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet",
            ".arrow": "arrow"}
OPENERS = {".gz": gzip.open, ".zst": zstandard.open}
EMBEDDED = ("embedded:python-docs", "embedded:python-code")
TEXT_FEATURES = Features({"text": Value("string")})


def load_documents(source: str | list[str], *, text_column: str = "text", sample_by: str = "document",
                   dataset_config_name: str | None = None, split: str = "train") -> Dataset:
    """One row per document, in a column `text`; documents without a visible character are left out.

    A source is `embedded:<name>`, a file, a folder, a glob (.txt, .md, .jsonl, .json, .csv, .parquet, .arrow, also
    as .gz or .zst), a data set saved with `save_to_disk`, or a Hub id. `sample_by` says what one document of a text
    file is: the file, a paragraph or a line. `split` picks from saved and Hub data sets.

    Raises InputError: nothing there, nothing readable, a missing column, or no text at all.
    """
    parts, names = [], [source] if isinstance(source, str) else source
    for name in names:
        with reading(f"source {name}"):
            if name.startswith("embedded:"):
                key = {"name": name, "python": sys.version, "hfscale": __version__}
                parts.append(Dataset.from_generator(_read_embedded, gen_kwargs=key, features=TEXT_FEATURES))
            elif name and (files := find_files(name)):
                parts += _load_files(files, text_column, sample_by, name)
            else:
                parts.append(_text_only(load_saved(name, dataset_config_name, split), text_column, name))
    with reading(f"source {', '.join(names)}: a text in it"):  # Arrow reads JSON without decoding it
        documents = concatenate_datasets(parts).filter(lambda text: bool(text and text.strip()), input_columns="text",
                                                       desc="Looking for empty texts")
    if len(documents) == 0:
        raise InputError(f"source {', '.join(names)}: no text in it (only blank lines or empty documents)")
    return documents


def load_splits(args: DataArguments, *, seed: int) -> DatasetDict:
    """The documents that `args` name, as `train` and `validation`; raises as the two functions it calls."""
    how = {name: getattr(args, name) for name in ("text_column", "sample_by", "dataset_config_name")}
    documents = load_documents(args.source, **how)
    if args.validation_source:
        return DatasetDict(train=documents, validation=load_documents(args.validation_source, **how))
    return split_documents(documents, split_by=args.split_by, validation_fraction=args.validation_fraction, seed=seed)


def load_held_out(run_folder: str) -> Dataset:
    """The validation documents of a training run, found again through its run.json.

    Raises InputError: no run.json that names its data, or the source is no longer the text of that run.
    """
    try:
        record = json.loads(Path(run_folder, "run.json").read_text("utf-8"))
        args = DataArguments(**{f.name: record["config"][f.name] for f in fields(DataArguments)})
        seed, fingerprint = record["config"]["seed"], record["data"]["fingerprint"]["validation"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"--source: missing, and {run_folder} has no run.json that names its held-out text") from None
    documents = load_splits(args, seed=seed)["validation"]
    if text_fingerprint(documents) != fingerprint:
        raise InputError(f"--source: missing, and {', '.join(args.source)} is no longer the text of {run_folder}")
    return documents


def split_documents(documents: Dataset, *, split_by: str, validation_fraction: float, seed: int) -> DatasetDict:
    """Train and validation parts: documents drawn at random with `seed`, or the last part of the text by characters.

    Raises InputError: the fraction is outside (0, 1), or too few documents to draw from.
    """
    if not 0 < validation_fraction < 1:
        raise InputError(f"validation_fraction: got {validation_fraction}, expected a number between 0 and 1")
    if split_by == "position":
        return _split_by_position(documents, validation_fraction)
    held_out = max(1, round(len(documents) * validation_fraction))
    if held_out >= len(documents):
        raise InputError(f"the source holds {len(documents)} document(s), too few to keep {held_out} for validation; "
                         "use --split_by position, --sample_by paragraph or --validation_source")
    parts = documents.train_test_split(test_size=held_out, seed=seed)
    return DatasetDict(train=parts["train"], validation=parts["test"])


def text_fingerprint(documents: Dataset) -> str:
    """SHA-256 over the texts in their order (16 hexadecimal digits): equal text, equal fingerprint."""
    digest = hashlib.sha256()
    for batch in documents.iter(1000):
        for text in batch["text"]:
            digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def _split_by_position(documents: Dataset, validation_fraction: float) -> DatasetDict:
    """Documents keep their order; the one that holds the boundary is cut there."""
    texts = documents["text"][:]
    left = int(sum(map(len, texts)) * (1 - validation_fraction))
    train, validation = [], []
    for text in texts:
        train.append(text[:max(left, 0)])
        validation.append(text[max(left, 0):])
        left -= len(text)
    return DatasetDict({name: Dataset.from_dict({"text": [text for text in part if text]}, features=TEXT_FEATURES)
                        for name, part in (("train", train), ("validation", validation))})


def _read_embedded(name: str, python: str, hfscale: str) -> Iterator[dict]:
    """The standard library's code, or the language reference's topics and each module's docstrings.

    `python` and `hfscale` only key the cache: the text is that of one Python, read by one version of this module.
    """
    from pydoc_data.topics import topics

    if name not in EMBEDDED:
        raise InputError(f"source {name}: unknown embedded text; there are {', '.join(EMBEDDED)}")
    docs = name == "embedded:python-docs"
    yield from ({"text": topics[topic]} for topic in sorted(topics) if docs)
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if skipped.isdisjoint(parts) and not parts[0].startswith(("config-", "_sysconfigdata")):
            try:
                code = path.read_text("utf-8")
            except UnicodeDecodeError:  # the few files that declare another encoding
                continue
            yield {"text": _docstrings(code) if docs else code}


def _docstrings(code: str) -> str:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [ast.get_docstring(node) for node in ast.walk(ast.parse(code)) if isinstance(node, documented)]
    return "\n\n".join(text for text in docstrings if text)


def suffix_of(path: Path) -> str:
    """What tells the kind of file, without .gz or .zst."""
    return path.with_suffix("").suffix if path.suffix in OPENERS else path.suffix


def find_files(name: str) -> list[Path]:
    """Sorted; none if nothing is there or the folder is a data set made by `save_to_disk`."""
    path = Path(name)
    if path.is_file():
        return [path]
    if not path.is_dir():
        return sorted(Path(p) for p in glob.glob(name, recursive=True) if Path(p).is_file())
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return []
    files = sorted(p for p in path.rglob("*") if p.is_file() and suffix_of(p) in BUILDERS)
    if not files:
        raise InputError(f"source {name}: no file in this folder ends in {', '.join(BUILDERS)} (or with .gz, .zst)")
    return files


def _load_files(files: list[Path], text_column: str, sample_by: str, name: str) -> list[Dataset]:
    """Text files (and unknown kinds) as `_read_text_files` does, other kinds by the `datasets` builder for each."""
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)  # they log what the error says
    parts = []
    for builder in dict.fromkeys(BUILDERS.values()):
        group = [str(p.absolute()) for p in files if BUILDERS.get(suffix_of(p), "text") == builder]
        if group and builder == "text":
            stamps = [(os.stat(p).st_size, os.stat(p).st_mtime_ns) for p in group]  # a changed file is read again
            how = {"files": group, "stamps": stamps, "sample_by": sample_by}
            parts.append(Dataset.from_generator(_read_text_files, gen_kwargs=how, features=TEXT_FEATURES))
        elif group:
            data = datasets.load_dataset(builder, data_files=group, split="train")
            parts.append(_text_only(data, text_column, name))
    return parts


def _read_text_files(files: list[str], stamps: list, sample_by: str) -> Iterator[dict]:
    """Strictly UTF-8, newlines normalised."""
    for name in files:
        with reading(name), OPENERS.get(Path(name).suffix, open)(name, "rb") as file:
            data = file.read()
            if b"\0" in data:
                raise InputError(f"{name}: binary data (a NUL byte at offset {data.index(0)}); give text files")
            text = io.StringIO(data.decode("utf-8-sig"), newline=None).read()
        if sample_by == "document":
            pieces = [text]
        else:
            pieces = text.split("\n\n") if sample_by == "paragraph" else text.splitlines()
        yield from ({"text": piece} for piece in pieces or [""])


def load_saved(name: str, config: str | None, split: str) -> Dataset:
    """A data set from disk if saved there, else from the Hub; raises InputError where there is no such thing."""
    if name and Path(name).is_dir():
        data = datasets.load_from_disk(name)
        if isinstance(data, DatasetDict) and split not in data:
            raise InputError(f"source {name}: no split '{split}'; it has {', '.join(data)}")
        return data if isinstance(data, Dataset) else data[split]
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or any(c in name for c in "*?[")
    if looks_like_path or Path(name).suffix in (*BUILDERS, *OPENERS):
        raise InputError(f"source {name}: no such file or folder")
    try:
        return datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the Hub client's errors have no common base
        offline = os.environ.get("HF_HUB_OFFLINE") == "1"
        reason = "the Hub is not reachable" if offline else " ".join(str(error).split())[:200]
        raise InputError(f"source {name}: not a file or folder here, and not loadable as a Hub data set ({reason}); "
                         f"offline there are {', '.join(EMBEDDED)} and local files") from None


def _text_only(data: Dataset, text_column: str, name: str) -> Dataset:
    if text_column not in data.column_names:
        raise InputError(f"source {name}: no column '{text_column}'; it has {', '.join(data.column_names)} "
                         "(choose with --text_column)")
    kind = data.features[text_column]
    if getattr(kind, "dtype", None) not in ("string", "large_string"):
        raise InputError(f"source {name}: column '{text_column}' holds {kind}, not text")
    return data.select_columns([text_column]).rename_columns({text_column: "text"}).cast(TEXT_FEATURES)


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Whatever a reader raises (they share no base class) becomes one line that names the place."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, InputError):
            raise cause from None
        if isinstance(error, UnicodeDecodeError):
            reason = (f"not UTF-8 (byte 0x{error.object[error.start]:02x} at offset {error.start}); convert it first, "
                      "for example: iconv -f cp1252 -t utf-8")
        elif isinstance(cause, StopIteration) or "corresponds to no data" in str(cause):
            reason = "no rows in it"
        else:
            reason = f"cannot be read: {' '.join(str(cause).split())[:200] or type(cause).__name__}"
        raise InputError(f"{place}: {reason}") from None

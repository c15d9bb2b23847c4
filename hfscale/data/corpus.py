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
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets

from hfscale import __version__
from hfscale.config import DataArguments, InputError

TEXT_SUFFIXES = (".txt", ".md")
BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}
TEXT_FEATURES = Features({"text": Value("string")})


def load_documents(source: str | list[str], *, text_column: str = "text", sample_by: str = "document",
                   dataset_config_name: str | None = None, split: str = "train") -> Dataset:
    """One row per document, in a column `text`; documents without a visible character are left out.

    A source is `embedded:<name>`, a file, a folder, a glob (.txt, .md, .jsonl, .json, .csv, .parquet, .arrow, also
    as .gz or .zst), a data set saved with `save_to_disk`, or a Hub id. `sample_by` says what one document of a text
    file is: the file, a paragraph or a line. `split` picks from saved and Hub data sets.

    Raises:
        InputError: nothing there, nothing readable, a missing column, or no text at all.
    """
    parts, names = [], [source] if isinstance(source, str) else source
    for name in names:
        if name.startswith("embedded:"):
            parts.append(_load_embedded(name))
        elif _is_saved_dataset(Path(name)):
            parts.append(_text_only(_load_saved(name, split), text_column, name))
        elif name and (files := _find_files(name)):
            parts += _load_files(files, text_column, sample_by)
        else:
            parts.append(_text_only(_load_hub(name, dataset_config_name, split), text_column, name))
    try:
        documents = concatenate_datasets(parts).filter(_has_text, input_columns="text", desc="Looking for empty texts")
    except UnicodeDecodeError as error:  # Arrow reads JSON without decoding it
        raise InputError(f"source {', '.join(names)}: holds text that is not UTF-8 ({error.object[:40]!r}); convert "
                         "it first, for example: iconv -f cp1252 -t utf-8") from None
    if len(documents) == 0:
        raise InputError(f"source {', '.join(names)}: no text in it (only blank lines or empty documents)")
    return documents


def load_splits(args: DataArguments, *, seed: int) -> DatasetDict:
    """The documents that `args` name, as `train` and `validation`; raises as the two functions it calls."""
    how = {"text_column": args.text_column, "sample_by": args.sample_by,
           "dataset_config_name": args.dataset_config_name}
    documents = load_documents(args.source, **how)
    if args.validation_source:
        return DatasetDict(train=documents, validation=load_documents(args.validation_source, **how))
    return split_documents(documents, split_by=args.split_by, validation_fraction=args.validation_fraction, seed=seed)


def load_held_out(run_folder: str) -> Dataset:
    """The validation documents of a training run, found again through its run.json.

    Raises:
        InputError: no run.json that names its data, or the source is no longer the text of that run.
    """
    try:
        record = json.loads(Path(run_folder, "run.json").read_text("utf-8"))
        args = DataArguments(**{f.name: record["config"][f.name] for f in fields(DataArguments)})
        seed, num_bytes = record["config"]["seed"], record["data"]["bytes"]["validation"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"--source: missing, and {run_folder} has no run.json that names its held-out text") from None
    documents = load_splits(args, seed=seed)["validation"]
    if count_bytes(documents) != num_bytes:
        raise InputError(f"--source: missing, and {', '.join(args.source)} is no longer the text of {run_folder}")
    return documents


def split_documents(documents: Dataset, *, split_by: str, validation_fraction: float, seed: int) -> DatasetDict:
    """Train and validation parts: documents drawn at random with `seed`, or the last part of the text by characters.

    Raises:
        InputError: the fraction is outside (0, 1) or a part would be empty.
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


def count_bytes(documents: Dataset) -> int:
    """UTF-8 bytes of all texts."""
    return sum(len(text.encode()) for batch in documents.iter(1000) for text in batch["text"])


def _has_text(text: str | None) -> bool:
    return bool(text and text.strip())


def _split_by_position(documents: Dataset, validation_fraction: float) -> DatasetDict:
    """Documents keep their order; the one that holds the boundary is cut there."""
    texts = documents["text"][:]
    left = int(sum(map(len, texts)) * (1 - validation_fraction))
    train, validation = [], []
    for text in texts:
        train += [text[:left]] if left > 0 else []
        validation += [text[max(left, 0):]] if left < len(text) else []
        left -= len(text)
    parts = {"train": train, "validation": validation}
    return DatasetDict({name: Dataset.from_dict({"text": part}, features=TEXT_FEATURES)
                        for name, part in parts.items()})


def _load_embedded(name: str) -> Dataset:
    readers = {"embedded:python-docs": _python_docs, "embedded:python-code": _python_code}
    if name not in readers:
        raise InputError(f"source {name}: unknown embedded text; there are {', '.join(readers)}")
    return _cached(_read_embedded, {"name": name, "python": sys.version, "hfscale": __version__})


def _read_embedded(name: str, python: str, hfscale: str) -> Iterator[dict]:
    """The last two only key the cache: the text is that of one Python, read by one version of this module."""
    reader = _python_docs if name == "embedded:python-docs" else _python_code
    for text in reader():
        yield {"text": text}


def _stdlib_sources() -> Iterator[str]:
    """Source of every standard-library module in a fixed order, without tests and installed packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if skipped.isdisjoint(parts) and not parts[0].startswith(("config-", "_sysconfigdata")):
            try:
                yield path.read_text("utf-8")
            except UnicodeDecodeError:  # the few files that declare another encoding
                continue


def _python_code() -> Iterator[str]:
    yield from _stdlib_sources()


def _python_docs() -> Iterator[str]:
    """The language reference's topics, then each module's docstrings joined in source order."""
    from pydoc_data.topics import topics

    yield from (text for _, text in sorted(topics.items()))
    for source in _stdlib_sources():
        nodes = ast.walk(ast.parse(source))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        docstrings = [ast.get_docstring(node) for node in nodes if isinstance(node, documented)]
        yield "\n\n".join(text for text in docstrings if text)


def _find_files(name: str) -> list[Path]:
    path = Path(name)
    if path.is_file():
        return [path]
    known = (*TEXT_SUFFIXES, *BUILDERS)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and _suffix(p) in known)
        if not files:
            raise InputError(f"source {name}: no file in this folder ends in {', '.join(known)} "
                             "(or these with .gz, .zst)")
        return files
    return sorted(Path(p) for p in glob.glob(name, recursive=True) if Path(p).is_file())


def _suffix(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix in (".gz", ".zst") else path.suffix


def _load_files(files: list[Path], text_column: str, sample_by: str) -> list[Dataset]:
    """Text files through `_read_text_files`, each other kind through the `datasets` builder for it."""
    texts = [p for p in files if _suffix(p) in TEXT_SUFFIXES or _suffix(p) not in BUILDERS]
    parts = []
    if texts:
        stamps = [(p.stat().st_size, p.stat().st_mtime_ns) for p in texts]  # a changed file is read again
        parts.append(_cached(_read_text_files, {"files": [str(p.resolve()) for p in texts], "stamps": stamps,
                                                "sample_by": sample_by}))
    for builder in dict.fromkeys(BUILDERS.values()):
        group = [str(p) for p in files if BUILDERS.get(_suffix(p)) == builder]
        if group:
            shown = group[0] if len(group) == 1 else f"{len(group)} {builder} files"
            data = _load_group(builder, group, shown)
            parts.append(_text_only(data, text_column, shown))
    return parts


def _read_text_files(files: list[str], stamps: list, sample_by: str) -> Iterator[dict]:
    for name in files:
        text = _decode(Path(name))
        if sample_by == "document":
            pieces = [text]
        else:
            pieces = text.split("\n\n") if sample_by == "paragraph" else text.splitlines() or [""]
        for piece in pieces:
            yield {"text": piece}


def _decode(path: Path) -> str:
    """A text file's content, strictly UTF-8, newlines normalised."""
    try:
        data = _decompress(path)
        if b"\0" in data:
            raise InputError(f"{path}: binary data (a NUL byte at offset {data.index(0)}); give text files")
        return io.StringIO(data.decode("utf-8-sig"), newline=None).read()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte 0x{error.object[error.start]:02x} at offset {error.start}); "
                         f"convert it first, for example: iconv -f cp1252 -t utf-8") from None
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def _decompress(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        import zstandard

        try:
            return zstandard.ZstdDecompressor().stream_reader(data).read()
        except zstandard.ZstdError as error:
            raise OSError(error) from None
    return data


def _cached(reader: Callable, arguments: dict) -> Dataset:
    """The reader's rows through the `datasets` cache, which locks: all ranks share one copy."""
    try:
        return Dataset.from_generator(reader, gen_kwargs=arguments, features=TEXT_FEATURES)
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise


def _is_saved_dataset(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _load_saved(name: str, split: str) -> Dataset:
    data = datasets.load_from_disk(name)
    if isinstance(data, DatasetDict):
        if split not in data:
            raise InputError(f"source {name}: no split '{split}'; it has {', '.join(data)}")
        return data[split]
    return data


def _load_hub(name: str, config: str | None, split: str) -> Dataset:
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or any(c in name for c in "*?[")
    if looks_like_path or Path(name).suffix in (*TEXT_SUFFIXES, *BUILDERS, ".gz", ".zst"):
        raise InputError(f"source {name}: no such file or folder")
    try:
        return datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the Hub client's errors have no common base
        reason = "the Hub is not reachable" if os.environ.get("HF_HUB_OFFLINE") == "1" else _first_line(error)
        raise InputError(f"source {name}: not a file or folder here, and not loadable as a Hub data set ({reason}); "
                         "offline there are embedded:python-docs, embedded:python-code and local files") from None


def _text_only(data: Dataset, text_column: str, name: str) -> Dataset:
    if text_column not in data.column_names:
        raise InputError(f"source {name}: no column '{text_column}'; it has {', '.join(data.column_names)} "
                         "(choose with --text_column)")
    kind = data.features[text_column]
    if getattr(kind, "dtype", None) not in ("string", "large_string"):
        raise InputError(f"source {name}: column '{text_column}' holds {kind}, not text")
    if text_column != "text":
        data = data.select_columns([text_column]).rename_column(text_column, "text")
    return data.select_columns(["text"]).cast(TEXT_FEATURES)


def _load_group(builder: str, files: list[str], name: str) -> Dataset:
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)  # they log what the line below says
    try:
        return datasets.load_dataset(builder, data_files=files, split="train")
    except Exception as error:  # each builder raises its parser's own errors
        cause = error.__cause__ or error
        empty = isinstance(cause, StopIteration) or "corresponds to no data" in str(cause)
        reason = "no rows in it" if empty else f"cannot be read: {_first_line(cause)}"
        raise InputError(f"source {name}: {reason}") from None


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

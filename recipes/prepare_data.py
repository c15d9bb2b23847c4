"""Clean any text into a data set to trust: repair, rules, duplicates, personal data, language,
split, and a data card.

    hfscale prepare_data --source "crawl/*.jsonl" --output_dir runs/data
    hfscale pretrain --config tiny_cpu --source runs/data --validation_source runs/data

Past one machine: hfscale prepare_data_cluster, with the same config.
"""

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfscale.cleaning.rules import CleaningArguments, advice_for
from hfscale.config import parse_args
from hfscale.folders import DATA_CARD, PREPARED_FILES, describe_run
from hfscale.process import run
from hfscale.whole_folder import whole_folder


@dataclass
class PrepareDataArguments(CleaningArguments):
    output_dir: str = field(
        default="runs/data", metadata={"help": "folder of the data set and its card"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace the data set in output_dir"})
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "show what each stage and rule would drop, with examples, and write nothing"
        },
    )


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = parse_args(PrepareDataArguments, argv, recipe=__file__)
    started = time.perf_counter()
    if args.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            card = prepare(args, Path(folder), argv, started)
        show(card, args)
        print("dry run: nothing was written")
        return card
    with whole_folder(
        args.output_dir, overwrite=args.overwrite, last_file=DATA_CARD, written=PREPARED_FILES
    ) as folder:
        card = prepare(args, folder, argv, started)
    show(card, args)
    print(f"data set, data_card.md, funnel.png and dropped.jsonl: {args.output_dir}")
    return card


def prepare(
    args: PrepareDataArguments, folder: Path, argv: list[str] | None, started: float
) -> dict[str, Any]:
    """The data set and its card, into `folder`; returns the card."""
    from hfscale.cleaning.stages import Ledger
    from hfscale.cleaning.steps import (
        check_evaluation_source,
        clean_texts,
        drop_copies,
        finish_texts,
        load_source,
        write_data_set,
    )

    # Data: the documents, and a ledger of what happens to each.
    check_evaluation_source(args)
    ledger = Ledger(folder / "dropped.jsonl", advice=advice_for(args))
    documents = load_source(args, ledger)

    # Cleaning: copies are looked for among repaired texts that keep the rules.
    documents = clean_texts(documents, args, ledger)
    documents = drop_copies(documents, args, ledger)
    documents = finish_texts(documents, args, ledger)

    # What is written: the splits, the card, and what was dropped.
    record = describe_run(__file__, args, argv, time.perf_counter() - started)
    return write_data_set(documents, args, ledger, folder, record)


def show(card: dict[str, Any], args: PrepareDataArguments) -> None:
    """What each stage and rule dropped and kept; of a dry run with examples."""
    from hfscale.cleaning.card import show_card

    show_card(card, examples=args.dry_run)


if __name__ == "__main__":
    run(main)

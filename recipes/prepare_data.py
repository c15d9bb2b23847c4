"""Clean any text into a data set to trust: repair, rules, duplicates, personal data, language,
split, and a data card.

    hfscale prepare_data --source "crawl/*.jsonl" --output_dir runs/data
    hfscale pretrain --config tiny_cpu --source runs/data --validation_source runs/data

Past one machine: hfscale prepare_data_cluster, with the same config.
"""

import tempfile
from dataclasses import dataclass, field, fields
from pathlib import Path

from hfscale.cleaning.rules import CleaningArguments, advice_for
from hfscale.config import parse_args
from hfscale.folders import DATA_CARD, PREPARED_FILES, whole_folder
from hfscale.process import run


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


def main(argv: list[str] | None = None) -> None:
    args = parse_args(PrepareDataArguments, argv, recipe=__file__)
    cleaning = CleaningArguments(
        **{f.name: getattr(args, f.name) for f in fields(CleaningArguments)}
    )
    place = (
        tempfile.TemporaryDirectory()
        if args.dry_run
        else whole_folder(
            args.output_dir, overwrite=args.overwrite, last_file=DATA_CARD, written=PREPARED_FILES
        )
    )
    with place as folder:
        from hfscale.cleaning.card import show_card
        from hfscale.cleaning.stages import Ledger
        from hfscale.cleaning.steps import (
            check_evaluation_source,
            clean_texts,
            drop_copies,
            finish_texts,
            load_source,
            write_data_set,
        )

        check_evaluation_source(cleaning)
        ledger = Ledger(Path(folder, "dropped.jsonl"), advice=advice_for(cleaning))
        documents = load_source(cleaning, ledger)
        documents = clean_texts(documents, cleaning, ledger)
        documents = drop_copies(documents, cleaning, ledger)
        documents = finish_texts(documents, cleaning, ledger)
        card = write_data_set(documents, cleaning, ledger, Path(folder))
    show_card(card, examples=args.dry_run)
    if args.dry_run:
        return print("dry run: nothing was written")
    print(f"data set, data_card.md, funnel.png and dropped.jsonl: {args.output_dir}")


if __name__ == "__main__":
    run(main)

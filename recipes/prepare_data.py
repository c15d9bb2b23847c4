"""Clean any text into a data set to trust: repair, rules, duplicates, personal data, language, split, and a data card.

    hfscale prepare_data --source "crawl/*.jsonl" --output_dir runs/data
    hfscale pretrain --config tiny_cpu --source runs/data

Past one machine: hfscale prepare_data_cluster, with the same config.
"""

from dataclasses import dataclass, field, fields

from hfscale.config import parse_args, run, whole_folder
from hfscale.data.rules import CleaningArguments
from hfscale.folders import DATA_CARD, PREPARED_FILES


@dataclass
class PrepareDataArguments(CleaningArguments):
    output_dir: str = field(default="runs/data", metadata={"help": "folder of the data set and its card"})
    overwrite: bool = field(default=False, metadata={"help": "replace the data set in output_dir"})


def main(argv: list[str] | None = None) -> None:
    args = parse_args(PrepareDataArguments, argv, recipe=__file__)
    cleaning = CleaningArguments(**{f.name: getattr(args, f.name) for f in fields(CleaningArguments)})
    with whole_folder(args.output_dir, overwrite=args.overwrite, last_file=DATA_CARD,
                      written=PREPARED_FILES) as folder:
        from hfscale.data.dedup import exact_clusters, near_clusters
        from hfscale.data.pipeline import clean_texts, finish_texts, load_source, write_data_set
        from hfscale.data.stages import Ledger, keep_first

        ledger = Ledger(folder / "dropped.jsonl")
        documents = load_source(cleaning, ledger)
        documents = clean_texts(documents, cleaning, ledger)
        if args.exact_duplicates:
            documents = keep_first(documents, "exact duplicates", exact_clusters(documents), ledger)
        if args.near_duplicates:
            clusters = near_clusters(documents, threshold=args.near_duplicate_threshold, num_proc=args.num_proc)
            documents = keep_first(documents, "near duplicates", clusters, ledger)
        documents = finish_texts(documents, cleaning, ledger)
        write_data_set(documents, cleaning, ledger, folder)
    print(f"data set, data_card.md, funnel.png and dropped.jsonl: {args.output_dir}")


if __name__ == "__main__":
    run(main)

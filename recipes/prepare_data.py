"""Clean any text into a data set to trust: repair, rules, duplicates, personal data, language, split, and a data card.

    hfscale prepare_data --source "crawl/*.jsonl" --output_dir runs/data
    hfscale pretrain --config tiny_cpu --source runs/data
"""

import os
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from hfscale.config import InputError, SourceArguments, parse_args, run
from hfscale.data.rules import QualityRules


@dataclass
class PrepareDataArguments(QualityRules, SourceArguments):
    output_dir: str = field(default="runs/data", metadata={"help": "folder of the data set and its card"})
    overwrite: bool = field(default=False, metadata={"help": "replace the data set in output_dir"})
    repair: bool = field(default=True, metadata={"help": "mend encoding, line ends, control characters, HTML residue"})
    quality: bool = field(default=True, metadata={"help": "drop documents that break a rule (the thresholds above)"})
    exact_duplicates: bool = field(default=True, metadata={"help": "keep the first of equal documents"})
    near_duplicates: bool = field(default=True, metadata={"help": "keep the first of nearly equal documents"})
    near_duplicate_threshold: float = field(default=0.52, metadata={"help": "Jaccard similarity of word shingles"})
    personal_data: bool = field(default=True, metadata={"help": "mask e-mail and IP addresses, phone numbers, keys"})
    evaluation_source: list[str] | None = field(default=None, metadata={
        "help": "text that the model will be tested on: what of it is in here goes to contamination.json"})
    drop_contaminated: bool = field(default=False, metadata={"help": "drop documents that share 13 words with it"})
    languages: list[str] | None = field(default=None, metadata={"help": "keep these only, such as en de"})
    validation_fraction: float = field(default=0.02, metadata={"help": "share of documents for validation"})
    test_fraction: float = field(default=0.0, metadata={"help": "share of documents for testing"})
    seed: int = field(default=42, metadata={"help": "of the split"})
    num_proc: int | None = field(default=None, metadata={"help": "worker processes; changes no result"})


def main(argv: list[str] | None = None) -> None:
    args = parse_args(PrepareDataArguments, argv, recipe=__file__)
    output_dir = Path(args.output_dir)
    if output_dir.exists() and not (args.overwrite and (output_dir / "data_card.json").is_file()):
        raise InputError(f"output_dir {output_dir}: exists; name another, or --overwrite a data set of this recipe")
    if not 0 <= args.validation_fraction + args.test_fraction < 1:
        raise InputError("validation_fraction and test_fraction: together they must leave documents to train on")

    import numpy as np

    from hfscale.data.clean import detect_language, mask_personal_data, quality_problem, repair_text
    from hfscale.data.corpus import load_documents
    from hfscale.data.dedup import exact_clusters, near_clusters
    from hfscale.data.stages import Ledger, change, check_contamination, drop_rows, judge, keep_first, split_by_cluster
    from hfscale.report.data_card import write_data_card

    how = {"text_column": args.text_column, "sample_by": args.sample_by,
           "dataset_config_name": args.dataset_config_name}
    documents = load_documents(args.source, **how)
    documents = documents.add_column("id", list(range(len(documents))))
    part = output_dir.with_name(f".{output_dir.name}.part")  # renamed at the end: the folder is whole or absent
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        ledger, languages = Ledger(part / "dropped.jsonl"), None
        ledger.add("source", documents, documents)
        if args.repair:
            documents = change(documents, "repair", lambda text: (repair_text(text), {}), ledger, args.num_proc)
        if args.quality:
            rules = QualityRules(**{f.name: getattr(args, f.name) for f in fields(QualityRules)})
            documents = judge(documents, "quality", lambda text: quality_problem(text, rules), ledger, args.num_proc)
        if args.exact_duplicates:
            documents = keep_first(documents, "exact duplicates", exact_clusters(documents), ledger)
        if args.near_duplicates:
            clusters = near_clusters(documents, threshold=args.near_duplicate_threshold, num_proc=args.num_proc)
            documents = keep_first(documents, "near duplicates", clusters, ledger)
        if args.personal_data:
            documents = change(documents, "personal data", mask_personal_data, ledger, args.num_proc)
        if args.languages:
            found = [detect_language(text) for text in documents["text"]]
            languages = dict(Counter(found))
            other = {i: ("other language", name) for i, name in enumerate(found) if name not in args.languages}
            documents = drop_rows(documents, "language", other, ledger)
        if args.evaluation_source:
            items = load_documents(args.evaluation_source, **how)["text"][:]
            documents = check_contamination(documents, items, ledger, drop=args.drop_contaminated)
        splits = split_by_cluster(documents, np.arange(len(documents)), seed=args.seed,
                                  validation_fraction=args.validation_fraction, test_fraction=args.test_fraction)
        splits.save_to_disk(part)
        write_data_card(part, ledger, splits, config=asdict(args), languages=languages)
        if output_dir.exists():
            shutil.rmtree(output_dir)
        os.replace(part, output_dir)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"data set, data_card.md, funnel.png and dropped.jsonl: {output_dir}")


if __name__ == "__main__":
    run(main)

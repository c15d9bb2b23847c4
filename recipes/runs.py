"""A table of the runs below a folder, the newest first: what was trained, for how long, how good;
and how much of that is the seed's doing.

hfscale runs
hfscale runs experiments --sort eval_loss
hfscale runs --sort -eval_bleu --json
"""

import json
from dataclasses import dataclass, field
from typing import Any

from hfscale.config import parse_args
from hfscale.process import run


@dataclass
class RunsArguments:
    folder: str = field(
        default="runs",
        metadata={"help": "where to look, at any depth to four", "comes_first": True},
    )
    sort: str | None = field(
        default=None,
        metadata={"help": "a column, such as eval_loss; -eval_bleu: the largest first"},
    )
    json: bool = field(default=False, metadata={"help": "print JSON, with every digit"})


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    args = parse_args(RunsArguments, argv, recipe=__file__)

    from hfscale.report.run_list import find_runs, seed_noise, shown_columns, sorted_runs
    from hfscale.report.tables import show_records
    from hfscale.shown import show_text

    runs = find_runs(args.folder)
    if args.sort:
        runs = sorted_runs(runs, args.sort)
    if args.json:
        print(json.dumps(runs, indent=1, ensure_ascii=False))
    else:
        show_records(shown_columns(runs, args.folder, args.sort))
        noise, said = seed_noise(runs, args.folder)
        if noise:
            show_records(noise, title="seed noise: runs that differ in their seed alone")
        for line in said:
            show_text(line)
    return runs


if __name__ == "__main__":
    run(main)

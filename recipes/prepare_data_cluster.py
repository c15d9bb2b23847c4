"""Data preparation past one machine: the stages and the config of prepare_data, as datatrove jobs
over shards.

    hfscale prepare_data_cluster --config crawl.yaml --tasks 64 --workers 16 --output_dir runs/data
    hfscale prepare_data_cluster --config crawl.yaml --tasks 512 --executor slurm \\
        --executor_args '{"partition": "cpu", "time": "04:00:00"}' --output_dir runs/data

Run again with the same settings, it goes on with the tasks that did not finish (docs/cleaning.md).
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from hfscale.cleaning import engines
from hfscale.cleaning.rules import CleaningArguments
from hfscale.config import parse_args
from hfscale.folders import (
    DATA_CARD,
    PREPARED_FILES,
    check_output_folder,
    describe_run,
    write_atomically,
)
from hfscale.process import InputError, run
from hfscale.stopping import note_when_stopped
from hfscale.whole_folder import only_writer

PUBLISHED = "logs/publish/completions/00000"


@dataclass
class PrepareDataClusterArguments(CleaningArguments):
    output_dir: str = field(
        default="runs/data", metadata={"help": "folder of the data set; OUTPUT_DIR.work: shards"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace the data set in output_dir"})
    executor: Literal["local", "slurm", "ray"] = field(
        default="local", metadata={"help": "datatrove's executor"}
    )
    tasks: int = field(
        default=os.cpu_count() or 1,
        metadata={"help": "shards; each is one task of each job", "min": 1},
    )
    workers: int = field(
        default=-1, metadata={"help": "tasks at once; -1: all, but local one per core", "min": -1}
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "show what each stage and rule would drop of the first task's part, cleaned "
            "here, and write nothing"
        },
    )
    executor_args: dict = field(
        default_factory=dict,
        metadata={
            "help": "more arguments of datatrove's executor by name; slurm needs partition and time"
        },
    )


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    args = parse_args(PrepareDataClusterArguments, argv, recipe=__file__)
    if args.workers == 0:
        raise InputError("workers: got 0, expected at least 1, or -1 for all")
    cleaning = CleaningArguments(
        **{item.name: getattr(args, item.name) for item in fields(CleaningArguments)}
    )
    cleaning.num_proc = None  # here tasks are what runs side by side
    # Another process ends the work, so nobody knows how long it takes.
    record = describe_run(__file__, args, argv, seconds=None)
    if args.dry_run:
        return show_first_part(cleaning, args.tasks, record)

    # Where it runs and writes.
    check_output_folder(
        args.output_dir, overwrite=args.overwrite, last_file=DATA_CARD, written=PREPARED_FILES
    )
    executor_class = engines.find_executor(args.executor)
    output_dir = Path(args.output_dir).absolute()
    work = Path(f"{output_dir}.work")

    # Data: what is wrong with a source is said before anything is queued.
    check_sources(cleaning)

    # The jobs, each of which needs all of the one before.
    from hfscale.cleaning import shards

    publish = partial(
        shards.publish_shards,
        output_dir=str(output_dir),
        overwrite=args.overwrite,
        record=record,
    )
    jobs: dict[str, Callable[..., None]] = {
        "read": shards.read_shard,
        "clean": shards.clean_shard,
        "link": shards.link_shards,
        "finish": shards.finish_shard,
        "publish": publish,
    }
    executors = {}
    for name, job in jobs.items():
        step = partial(
            shards.run_job, name=name, job=job, args=cleaning, work=work, tasks=args.tasks
        )
        num_tasks = 1 if name == "publish" else args.tasks
        try:
            settings = engines.executor_settings(
                args.executor, args.workers, work, name, args.executor_args
            )
            executors[name] = executor_class([step], tasks=num_tasks, **settings)
        except (TypeError, ValueError) as error:
            raise InputError(f"executor_args: {error}") from None

    # The run: here, or queued elsewhere.
    with only_writer(f"output_dir {args.output_dir}", work):
        engines.check_queue(work)
        begin(work, asdict(cleaning) | {"tasks": args.tasks})
        print(f"logs: {work / 'logs'}", file=sys.stderr)
        note_when_stopped("finished tasks are kept; run the same command again to go on")
        if args.executor == "slurm":
            engines.queue(executors, work)
        else:
            engines.run_in_order(executors, work, on_ray=args.executor == "ray")
    card = None
    later = " (when all jobs are done)"
    if (work / PUBLISHED).is_file():
        from hfscale.cleaning.card import show_card

        later = ""
        card = json.loads((output_dir / DATA_CARD).read_text("utf-8"))
        show_card(card)
    print(f"data set, data_card.md, funnel.png and dropped.jsonl: {args.output_dir}{later}")
    return card


def show_first_part(
    cleaning: CleaningArguments, tasks: int, record: dict[str, Any]
) -> dict[str, Any]:
    from hfscale.cleaning.card import show_card
    from hfscale.cleaning.shards import try_shard

    with tempfile.TemporaryDirectory() as folder:
        card = try_shard(cleaning, tasks, Path(folder), record)
    show_card(card, examples=True)
    print(f"dry run: this is what the first of {tasks} tasks reads, by itself; nothing was written")
    return card


def check_sources(cleaning: CleaningArguments) -> None:
    """Say which files are left out; raises InputError for evaluation text that cannot be read."""
    from hfscale.cleaning.steps import check_evaluation_source
    from hfscale.data.files import about_endings, find_files
    from hfscale.data.sources import say

    check_evaluation_source(cleaning)
    for name in cleaning.source:
        say(about_endings(name, find_files(name)))


def begin(work: Path, settings: dict) -> None:
    """Shards of a finished run are cleared, shards of other settings refused."""
    file = work / "settings.json"
    text = json.dumps(settings, indent=1)
    if (work / PUBLISHED).is_file():
        shutil.rmtree(work)
    if file.is_file() and file.read_text("utf-8") != text:
        earlier = json.loads(file.read_text("utf-8"))
        differing = [name for name in settings if settings[name] != earlier.get(name)]
        raise InputError(
            f"{work}: begun with other settings ({', '.join(differing)}); give the same, or "
            "delete it to start anew"
        )
    work.mkdir(parents=True, exist_ok=True)
    write_atomically(file, text)


if __name__ == "__main__":
    run(main)

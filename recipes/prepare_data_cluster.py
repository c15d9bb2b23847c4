"""Data preparation past one machine: the stages and the config of prepare_data, as datatrove jobs
over shards.

    hfscale prepare_data_cluster --config crawl.yaml --tasks 64 --workers 16 --output_dir runs/data
    hfscale prepare_data_cluster --config crawl.yaml --tasks 512 --executor slurm --executor_args
    '{"partition": "cpu",
        "time": "04:00:00"}' --output_dir runs/data

Run again with the same settings, it goes on with the tasks that did not finish (docs/cleaning.md).
"""

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Literal

from hfscale.cleaning.rules import CleaningArguments
from hfscale.config import parse_args
from hfscale.folders import DATA_CARD, PREPARED_FILES, check_output_folder, write_atomically
from hfscale.process import InputError, run

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
        default=os.cpu_count() or 1, metadata={"help": "shards; each is one task of each job"}
    )
    workers: int = field(
        default=-1, metadata={"help": "tasks at once; -1: all, but local one per core"}
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


def main(argv: list[str] | None = None) -> None:
    args = parse_args(PrepareDataClusterArguments, argv, recipe=__file__)
    if args.tasks < 1 or args.workers < -1 or args.workers == 0:
        raise InputError(
            f"tasks {args.tasks}, workers {args.workers}: expected at least 1 (workers: or -1)"
        )
    cleaning = CleaningArguments(
        **{f.name: getattr(args, f.name) for f in fields(CleaningArguments)}
    )
    cleaning.num_proc = None  # here tasks are what runs side by side
    if args.dry_run:
        return show_first_part(cleaning, args.tasks)
    check_output_folder(
        args.output_dir, overwrite=args.overwrite, last_file=DATA_CARD, written=PREPARED_FILES
    )
    executor_class = find_executor(args.executor)
    work = Path(f"{Path(args.output_dir).absolute()}.work")

    from hfscale.cleaning import steps as pipeline
    from hfscale.cleaning.card import show_card
    from hfscale.data.files import about_endings, find_files
    from hfscale.data.sources import say

    pipeline.check_evaluation_source(cleaning)
    for name in args.source:
        say(about_endings(name, find_files(name)))
    output_dir = str(Path(args.output_dir).absolute())
    publish = partial(pipeline.publish_shards, output_dir=output_dir, overwrite=args.overwrite)
    jobs = {
        "read": pipeline.read_shard,
        "clean": pipeline.clean_shard,
        "link": pipeline.link_shards,
        "finish": pipeline.finish_shard,
        "publish": publish,
    }
    last, workers = (
        None,
        os.cpu_count() if args.executor == "local" and args.workers == -1 else args.workers,
    )
    for name, job in jobs.items():
        step = partial(pipeline.run_job, job=job, args=cleaning, work=work, tasks=args.tasks)
        more = {"workers": workers, "depends": last, "logging_dir": str(work / "logs" / name)}
        if args.executor == "slurm":
            same_python = f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
            more |= {"job_name": f"hfscale-{name}", "env_command": same_python}
        try:
            last = executor_class(
                [step], tasks=1 if name == "publish" else args.tasks, **more | args.executor_args
            )
        except TypeError as error:
            raise InputError(f"executor_args: {error}") from None
    begin(work, asdict(cleaning) | {"tasks": args.tasks})
    print(f"logs: {work / 'logs'}", file=sys.stderr)
    try:
        last.run()
    except subprocess.CalledProcessError as error:
        raise InputError(
            f"executor {args.executor}: {error.cmd[0]} ended with status {error.returncode}; what "
            "it said stands above"
        ) from None
    later = " (when all jobs are done)"
    if (work / PUBLISHED).is_file():
        later = ""
        show_card(json.loads(Path(output_dir, DATA_CARD).read_text("utf-8")))
    print(f"data set, data_card.md, funnel.png and dropped.jsonl: {args.output_dir}{later}")


def show_first_part(cleaning: CleaningArguments, tasks: int) -> None:
    from hfscale.cleaning.card import show_card
    from hfscale.cleaning.steps import try_shard

    with tempfile.TemporaryDirectory() as folder:
        card = try_shard(cleaning, tasks, Path(folder))
    show_card(card, examples=True)
    print(f"dry run: this is what the first of {tasks} tasks reads, by itself; nothing was written")


def find_executor(name: str) -> type:
    if not importlib.util.find_spec("datatrove"):
        raise InputError(f'executor {name}: needs an extra; pip install "hfscale[cluster-data]"')
    if name == "slurm" and not shutil.which("sbatch"):
        raise InputError(
            "executor slurm: no command sbatch here; start it where jobs are submitted, or take "
            "local"
        )
    if name == "ray" and not importlib.util.find_spec("ray"):
        raise InputError(
            "executor ray: ray is not installed; pip install ray on every node, or take local"
        )
    from datatrove import executor

    if name == "ray":
        import ray

        ray.init(ignore_reinit_error=True)  # RAY_ADDRESS names a cluster, else this machine is one
    return getattr(executor, f"{name.capitalize()}PipelineExecutor")


def begin(work: Path, settings: dict) -> None:
    """Shards of a finished run are cleared, shards of other settings refused."""
    file, text = work / "settings.json", json.dumps(settings, indent=1)
    if (work / PUBLISHED).is_file():
        shutil.rmtree(work)
    if file.is_file() and file.read_text("utf-8") != text:
        begun = json.loads(file.read_text("utf-8"))
        other = ", ".join(name for name in settings if settings[name] != begun.get(name))
        raise InputError(
            f"{work}: begun with other settings ({other}); give the same, or delete it to start "
            "anew"
        )
    work.mkdir(parents=True, exist_ok=True)
    write_atomically(file, text)


if __name__ == "__main__":
    run(main)

"""Is the difference real? Variants of a training, each with the same seeds, compared pair by pair.

Two learning rates; the optimizers of a training of your own; what each source is worth; how many
seeds a difference of 0.01 takes; one run of a comparison, for a job array:
hfscale compare --config tiny_cpu --vary learning_rate=1e-3,2e-3 --seeds 5
hfscale compare --recipe_args config=my.yaml --vary optimizer=adamw,muon
hfscale compare --leave_one_out source --recipe_args config=tiny_cpu source=books source=wiki
hfscale compare --config tiny_cpu --detect 0.01
sbatch --array=0-9 --wrap 'hfscale compare --config my.yaml --cell $SLURM_ARRAY_TASK_ID'
"""

import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from hfscale.config import parse_args
from hfscale.folders import check_output_file, describe_run, write_json
from hfscale.process import run


@dataclass
class CompareArguments:
    recipe: Literal[
        "pretrain", "distill", "finetune", "finetune_task", "finetune_preference", "quickstart"
    ] = field(default="pretrain", metadata={"help": "what trains"})
    recipe_args: list[str] = field(
        default_factory=lambda: ["config=tiny_cpu"],
        metadata={"help": "what all variants share: name=value for that recipe"},
    )
    vary: list[str] = field(
        default_factory=list,
        metadata={
            "help": "name=value,value, any argument of the recipe or config=a.yaml,b.yaml; of "
            "several names each combination; the first is the baseline"
        },
    )
    leave_one_out: Literal["source"] | None = field(
        default=None,
        metadata={
            "help": "source: all sources in their shares (source_weights, or equal ones), against "
            "all but each of them"
        },
    )
    seeds: int = field(
        default=5,
        metadata={
            "help": "runs of each variant, with the seeds 0, 1, ...; those of one seed are a pair",
            "min": 2,
            "max": 1000,
        },
    )
    metric: str | None = field(
        default=None,
        metadata={
            "help": "by which they are judged, of the run's metrics; default: eval_loss, or "
            "eval_bits_per_byte where variants cut the text into other tokens"
        },
    )
    detect: float | None = field(
        default=None,
        metadata={
            "help": "say how many seeds it takes to see a difference of this size in the metric",
            "min": 1e-12,
        },
    )
    stop_early: bool = field(
        default=False,
        metadata={
            "help": "train seed after seed, up to --seeds, and stop once each difference is shown, "
            "by a test that allows for looking each time"
        },
    )
    jobs: int = field(default=1, metadata={"help": "runs trained at a time", "min": 1})
    retries: int = field(
        default=1, metadata={"help": "how often a failed run is tried again", "min": 0}
    )
    cell: int | None = field(
        default=None, metadata={"help": "train only this run, from 0, and stop: for job arrays"}
    )
    record: str | None = field(
        default=None,
        metadata={"help": "check a folder of the speedrun (docs/speedrun.md), and print its entry"},
    )
    calibrate: str | None = field(
        default=None,
        metadata={"help": "measure this machine, for a folder of the speedrun"},
    )
    output_dir: str = field(
        default="runs/compare", metadata={"help": "runs, comparison.json and comparison.png"}
    )
    overwrite: bool = field(
        default=False,
        metadata={
            "help": "write comparison.json and comparison.png anew; runs stay, and what was "
            "compared before stays counted"
        },
    )


def main(argv: list[str] | None = None) -> dict[str, Any] | bool:
    args = parse_args(CompareArguments, argv, recipe=__file__)
    if args.record or args.calibrate:
        return enter_speedrun(args)
    started = time.perf_counter()
    trains_one_run = args.cell is not None  # which compares nothing
    record_file = check_output_file(
        args.output_dir, "comparison.json", overwrite=args.overwrite or trains_one_run
    )

    from hfscale.comparing.looks import join_variants, read_looks
    from hfscale.comparing.page import draw_comparison, print_comparison, read_curves
    from hfscale.comparing.sentences import sentence
    from hfscale.comparing.study import is_shown, seeds_needed, summarize, with_earlier
    from hfscale.comparing.training import (
        all_cells,
        finished_runs,
        not_finite,
        run_folders,
        train_cells,
        train_in_rounds,
    )
    from hfscale.comparing.variants import plan_variants
    from hfscale.many_runs import pick_cell

    # The variants; what cannot be compared is refused before anything is trained.
    plan = plan_variants(
        args.recipe,
        args.recipe_args,
        args.vary,
        args.leave_one_out,
        metric=args.metric,
        alone=args.detect is not None,
    )

    # What was compared here before stays counted, and what is new is told apart.
    looks, earlier = read_looks(args.output_dir)
    variants = join_variants(earlier, plan, args.output_dir)
    seeds = max([args.seeds, *(look["seeds"] for look in looks)])

    # One run of the comparison, for a job array.
    folder = Path(args.output_dir, "runs")
    options: dict[str, Any] = {
        "jobs": args.jobs,
        "retries": args.retries,
        "metric": args.metric,
    }
    if args.cell is not None:
        cell = pick_cell(all_cells(plan.variants, seeds), args.cell)
        _, failed = train_cells(plan, [cell], folder, **options)
        return not failed

    # The runs: all of them, or seed after seed until each difference is shown.
    before = finished_runs(plan, all_cells(earlier, seeds), folder)
    is_enough = partial(is_shown, variants, args.metric, looks, before) if args.stop_early else None
    runs, failed = train_in_rounds(plan, seeds, folder, is_enough, **options)
    runs = with_earlier(before, runs)

    # What they say.
    if not runs:  # each failure has been named
        print(f"no run is finished, nothing to compare; logs: {folder}", file=sys.stderr)
        return False
    found = summarize(variants, args.metric, looks, runs, stop_early=args.stop_early)
    failed += not_finite(runs, variants, found["metric"], folder)
    record = {
        **describe_run(__file__, args, argv, time.perf_counter() - started),
        "sentences": [sentence(found, one) for one in found["comparisons"]],
        **found,
        "power": seeds_needed(args.detect, found["comparisons"], found["variants"]),
        "failed": failed,
    }

    # What is written: the record, then the picture.
    write_json(record_file, record)
    curves = read_curves(run_folders(variants, runs, folder), runs, found["metric"])
    draw_comparison(record_file.with_name("comparison.png"), record, curves)
    print_comparison(record)
    print(f"comparison.json and comparison.png: {args.output_dir}")
    return False if failed else record


def enter_speedrun(args: CompareArguments) -> dict[str, Any]:
    """The machine's time for a folder of the speedrun, or the entry that it is worth; compares
    nothing.
    """
    from hfscale.comparing.speedrun import calibrate, check_record, entry_row

    if args.calibrate:
        seconds = calibrate(args.calibrate)
        print(f"calibration.json in {args.calibrate}: {seconds:.2f} CPU seconds")
        return {"cpu_seconds": seconds}
    entry = check_record(str(args.record))
    print(entry_row(entry))
    return entry


if __name__ == "__main__":
    run(main)

"""A finished run again, from its run.json alone, and the first thing that differs: versions, text,
tokenizer, new weights, a batch, a loss, the final weights, a metric.

hfscale replay runs/quickstart
hfscale replay runs/books --accelerate cpu_2proc --output_dir runs/books-2proc
"""

import os
import time
from dataclasses import dataclass, field

from hfscale.arguments import RemoteCodeArguments
from hfscale.config import parse_args
from hfscale.process import InputError, is_main_rank, run


@dataclass
class ReplayArguments(RemoteCodeArguments):
    run: str | None = field(
        default=None,
        metadata={
            "help": "folder of a finished run; may stand first, without its name",
            "comes_first": True,
        },
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "where the run is done again; default: the folder's name and -replay"},
    )
    keep_going: bool = field(
        default=False,
        metadata={
            "help": "train and compare all the rest also where versions, text, tokenizer or new "
            "weights differ"
        },
    )
    use_cpu: bool = field(
        default=False, metadata={"help": "on the CPU, also of a run that had a GPU"}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "delete an earlier replay in output_dir first"}
    )


def main(argv: list[str] | None = None) -> bool | None:
    args = parse_args(ReplayArguments, argv, recipe=__file__)
    started = time.perf_counter()
    if not args.run:
        raise InputError("run: none given; name the folder of a run: hfscale replay FOLDER")

    from hfscale.replaying.again import train_again
    from hfscale.replaying.comparison import compare_start, compare_training, start_in
    from hfscale.replaying.original import read_original, replay_options, replay_place
    from hfscale.replaying.outcome import (
        compare_versions,
        outcome_of,
        rules_of,
        show_outcome,
        write_outcome,
    )

    # What was run, and how the same is asked for here.
    original = read_original(args.run)
    output_dir = replay_place(original, args.output_dir, overwrite=args.overwrite)
    options = replay_options(
        original,
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        trust_remote_code=args.trust_remote_code,
    )
    options |= {"output_dir": output_dir, "overwrite": args.overwrite}
    if args.use_cpu:
        options["use_cpu"] = True

    # The same training again; what differs before its first step ends it there, unpaid.
    compared = [compare_versions(original)]
    expected = start_in(original.record)
    replayed = None
    if args.keep_going or compared[0].difference is None:
        replayed, start = train_again(
            original, options, expected=None if args.keep_going else expected
        )
        compared += compare_start(expected, start)
    if not is_main_rank():
        return None

    # What the steps were given, what came of them, and what was left and measured at the end.
    rules = rules_of(original, replayed)
    if replayed is not None and rules is not None:
        compared += compare_training(original, replayed, rules)
    outcome = outcome_of(original, compared, rules)
    write_outcome(__file__, args, argv, time.perf_counter() - started, output_dir, outcome)
    show_outcome(outcome, output_dir)
    return outcome["is_equal"]


if __name__ == "__main__":
    run(main)

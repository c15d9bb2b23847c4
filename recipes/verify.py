"""Whether folders are as they were written: a run's with its checkpoints, a prepared data set, a
tokenizer's. Every file is read and compared with manifest.json.

hfscale verify runs/pretrain-tiny
hfscale verify runs/a/checkpoint-1000 data/clean --sizes_only true
"""

from dataclasses import dataclass, field
from pathlib import Path

from hfscale.config import parse_args
from hfscale.process import InputError, run


@dataclass
class VerifyArguments:
    folders: list[str] = field(
        default_factory=list,
        metadata={
            "help": "what to verify; may stand first, without its name",
            "comes_first": True,
        },
    )
    sizes_only: bool = field(
        default=False, metadata={"help": "compare the sizes of files, not their content"}
    )


def main(argv: list[str] | None = None) -> bool:
    args = parse_args(VerifyArguments, argv, recipe=__file__)
    if not args.folders:
        raise InputError("folders: none given; name one that a recipe wrote: hfscale verify FOLDER")

    from hfscale.verification import parts_of, verify_part

    parts = [part for folder in args.folders for part in parts_of(Path(folder))]
    are_whole = [verify_part(part, sizes_only=args.sizes_only) for part in parts]
    is_whole = all(are_whole)
    if not is_whole:
        print(f"{are_whole.count(False)} of {len(parts)} folders are not as they were written")
    return is_whole


if __name__ == "__main__":
    run(main)

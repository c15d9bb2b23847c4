"""A finished run, or an export, as a repository of the Hub: model, tokenizer, card and record; what
was kept after so many words becomes branches.

hfscale push --model runs/quickstart                                # private, by the folder's name
hfscale push --model runs/quickstart --hub_model_id me/my-model --public
"""

from dataclasses import dataclass, field
from pathlib import Path

from hfscale.config import parse_args
from hfscale.process import run


@dataclass
class PushArguments:
    model: str = field(
        default="runs/quickstart", metadata={"help": "folder of a finished run, or of an export"}
    )
    hub_model_id: str | None = field(
        default=None, metadata={"help": "owner/name, or a name; default: the folder's name"}
    )
    public: bool = field(
        default=False, metadata={"help": "a new repository is for everybody to see"}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "add a commit to a repository that exists"}
    )


def main(argv: list[str] | None = None) -> str:
    args = parse_args(PushArguments, argv, recipe=__file__)

    from hfscale.training.sharing import push_folder

    repo_id = args.hub_model_id or Path(args.model).resolve().name
    return push_folder(args.model, repo_id, private=not args.public, overwrite=args.overwrite)


if __name__ == "__main__":
    run(main)

"""The run that is to be done again: what its record says, and with which options that is asked
for.
"""

import math
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from hfscale.config import REFUSED, arguments_class, kinds_of, shipped
from hfscale.folders import RUN_RECORD, check_output_dir
from hfscale.options import training_defaults
from hfscale.process import InputError
from hfscale.run_record import read_json, read_record

# The recipes that train, and whose record holds all that they were told.
RECIPES = (
    "quickstart",
    "pretrain",
    "distill",
    "finetune",
    "finetune_task",
    "finetune_preference",
    "finetune_picture",
)
TRAINER_STATE = "trainer_state.json"
# Options that say where a run goes, or who hears of it. Secrets are in no record.
OF_THE_PLACE = {
    "output_dir",
    "overwrite",
    "resume",
    "dry_run",
    "run_name",
    "push_to_hub",
    "trust_remote_code",
}
ENDS_OF_THE_PLACE = ("_token", "_bucket_id", "_space_id")
STARTS_OF_THE_PLACE = ("hub_", "push_to_hub_")


class Original(NamedTuple):
    """A finished run: its folder, its run.json, and the logs of its steps (none: they are gone)."""

    folder: Path
    record: dict[str, Any]
    logs: list[dict[str, Any]]

    @property
    def world_size(self) -> int:
        """Processes that trained together."""
        return self.record["hardware"].get("world_size", 1)


def read_original(run: str) -> Original:
    """The run in a folder, or beside a run.json.

    Raises InputError: no record or a damaged one, of a recipe that does not train, or of a script
    of the user's own.
    """
    folder = Path(run).parent if Path(run).name == RUN_RECORD else Path(run)
    record = read_record(str(folder), "run")
    recipe = record["recipe"]
    if recipe not in RECIPES:
        raise InputError(
            f"run {run}: was made by {recipe}, which cannot be replayed; name a run of "
            f"{', '.join(RECIPES)}"
        )
    script = shlex.split(record["command"])[1:2]
    if script != [recipe]:
        raise InputError(
            f"run {run}: was made by a script of your own ({''.join(script)}), and what it does "
            "only that script knows; start it again with the command in run.json, and compare the "
            "two folders with hfscale report"
        )
    return Original(folder, record, read_logs(folder))


def read_logs(folder: Path) -> list[dict[str, Any]]:
    """What a run logged, from trainer_state.json; nothing: it is gone.

    Raises InputError: it is damaged.
    """
    path = folder / TRAINER_STATE
    if not path.is_file():
        return []
    logs = read_json(path, "run", "delete it to compare the rest").get("log_history")
    if not isinstance(logs, list) or not all(isinstance(log, dict) for log in logs):
        raise InputError(f"run: {path} holds no log_history; delete it to compare the rest")
    return logs


def replay_place(original: Original, output_dir: str | None, *, overwrite: bool) -> str:
    """The folder in which the run is done again, once it may be written.

    Raises InputError: it is the run's own, or as `check_output_dir`.
    """
    folder = original.folder if original.folder.name else original.folder.absolute()
    place = output_dir or f"{folder}-replay"
    if Path(place).resolve() == original.folder.resolve():
        raise InputError(
            f"output_dir {place}: is the run that is replayed, which stays as it is; name another "
            "folder"
        )
    check_output_dir(place, resume=None, overwrite=overwrite, can_resume=False)
    return place


def replay_options(
    original: Original, *, world_size: int, trust_remote_code: bool
) -> dict[str, Any]:
    """The options of the run's recipe, by name, that ask for the same training on `world_size`
    processes: the same rows in each step.

    Raises InputError: the code of others was trusted then and is not now, or the rows of a step
    cannot be dealt out to so many processes.
    """
    config = original.record["config"]
    if config.get("trust_remote_code") and not trust_remote_code:
        raise InputError(
            f"run {original.folder}: ran Python code that its model or tokenizer brings along; "
            "read it, and pass --trust_remote_code if you trust it"
        )
    script = shipped("recipes", "[!_]*.py")[original.record["recipe"]]
    kinds = kinds_of(arguments_class(script))
    options = {
        name: value
        for name, value in config.items()
        if name in kinds and name not in REFUSED and not _is_of_the_place(name)
    }
    # What upstream itself leaves open need not be said.
    for name, default in training_defaults().items():
        if default is None and options.get(name, "") is None:
            del options[name]
    options |= {"report_to": "none", "trust_remote_code": trust_remote_code}
    if world_size != original.world_size:
        options |= _batch_of(original, world_size)
    return options


def _is_of_the_place(name: str) -> bool:
    is_named = name in OF_THE_PLACE
    return is_named or name.endswith(ENDS_OF_THE_PLACE) or name.startswith(STARTS_OF_THE_PLACE)


def _batch_of(original: Original, world_size: int) -> dict[str, int]:
    """A process's share of the rows of a step, in micro-batches no larger than they were."""
    place = f"run {original.folder}"
    before = original.world_size
    if original.record["train"].get("bound_to_world_size"):
        raise InputError(
            f"{place}: which rows a step reads, or how they count, follows from the number of "
            f"processes (docs/resuming.md); launch {before}"
        )
    config = original.record["config"]
    rows_at_once = config["per_device_train_batch_size"]
    rows = rows_at_once * config["gradient_accumulation_steps"] * before
    if rows % world_size:
        raise InputError(
            f"{place}: the {rows} rows of a step cannot be dealt out to {world_size} processes; "
            f"launch {before}, or another number that divides {rows}"
        )
    share = rows // world_size
    micro_batch = math.gcd(share, rows_at_once)
    return {
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": share // micro_batch,
    }

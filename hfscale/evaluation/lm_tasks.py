"""Names of lm-eval's tasks, and the files of those that read data of the user's own; known without a model."""

import logging
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import yaml

from hfscale.config import InputError
from hfscale.data.files import read_checked_rows
from hfscale.launch import shipped
from hfscale.options import did_you_mean

NO_TASKS = (".py", ".pyc", ".md", ".json", ".jsonl", ".csv", ".txt", ".png")  # files of other kinds
# A value of a line, or an item of a list, in YAML: what names a task, a group or a tag stands in such a place.
NAMES = re.compile(r"""(?:^\s*-|[:\[,])\s*["']?([^\s"',:\[\]{}#]+)["']?\s*(?=[,\]#]|$)""", re.MULTILINE)
TASKS = re.compile(r"""^["']?(?:task|group)["']?:\s*["']?([^\s"']+)""", re.MULTILINE)


def task_names(words: Sequence[str]) -> list[str]:
    """Names, some of them perhaps several with commas between."""
    return [name.strip() for word in words for name in word.split(",") if name.strip()]


def check_lm_eval(tasks: Sequence[str], *, data: str | None = None, include: str | None = None) -> None:
    """What can be known of lm-eval's tasks without a model, in a second or two.

    Raises InputError: the extra is not installed, an unknown task, a missing file, data without the columns of a task
    that is shipped with hfscale, or that no task reads.
    """
    if find_spec("lm_eval") is None:
        raise InputError('lm_eval: not installed: pip install "hfscale[lm-eval]"')
    if include and not Path(include).is_dir():
        raise InputError(f"lm_eval_include {include}: no such folder; it holds task files (.yaml)")
    if data is not None and not Path(data).is_file():
        raise InputError(f"lm_eval_data {data}: no such file; give a JSONL file")
    if not tasks:
        raise InputError("lm_eval: names no task; `lm-eval ls tasks` lists them")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    local = shipped("recipes/lm_eval_tasks", "*.yaml")
    if data is not None and local.keys().isdisjoint(tasks):
        raise InputError(f"lm_eval_data {data}: is read by {', '.join(local)}, and none of them is asked for")
    for name in tasks:
        if name in local:
            local_task(local[name], data)
    others = [name for name in tasks if name not in local]
    if not others:
        return
    texts = own_files()
    included = _included_names(include)
    known = included.union(*map(NAMES.findall, texts))
    for name in others:
        if name not in known:
            tasks_and_groups = included.union(*map(TASKS.findall, texts))
            raise unknown_task(name, [*local, *tasks_and_groups])


def own_files() -> list[str]:
    """lm-eval's own task files. They are looked through as text: lm-eval parses all 14,000, which takes most of a
    minute on a busy machine."""
    folder = Path(find_spec("lm_eval").submodule_search_locations[0], "tasks")
    return [path.read_text("utf-8", "replace") for path in folder.rglob("*")
            if path.suffix not in NO_TASKS and path.is_file()]


def _included_names(include: str | None) -> set[str]:
    from lm_eval.tasks import TaskManager

    return set(TaskManager(include_path=include, include_defaults=False).all_tasks) if include else set()


def unknown_task(name: str, known: Sequence[str]) -> InputError:
    """The error for a name that no task, group or tag has; it names the nearest of the known ones."""
    local = shipped("recipes/lm_eval_tasks", "*.yaml")
    return InputError(f"lm_eval: unknown task {name}{did_you_mean(name, known)}; shipped are {', '.join(local)}, "
                      "`lm-eval ls tasks` lists its own, and --lm_eval_include names a folder of more")


def local_task(path: Path, data: str | None) -> dict:
    """The task's configuration with this data, of which it has the columns: lm-eval would take their names as text."""
    config = yaml.safe_load(path.read_text("utf-8"))
    columns = config["metadata"]["columns"]
    expected = f"{', '.join(columns)} for {path.stem}"
    if data is None:
        raise InputError(f"lm_eval_data: missing; expected a file of JSON lines with {expected}")
    read_checked_rows("lm_eval_data", data, lambda row: {*columns} <= {*row}, expected)
    return config | {"dataset_kwargs": {"data_files": {"test": data}}}

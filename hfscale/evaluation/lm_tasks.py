"""Names of lm-eval's tasks, and the files that some read: what is known without a model."""

import logging
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from hfscale.config import shipped
from hfscale.data.files import read_checked_rows
from hfscale.options import did_you_mean
from hfscale.process import InputError
from hfscale.strict_yaml import naming, parse_yaml, read_limited, read_yaml

NO_TASKS = (".py", ".pyc", ".md", ".json", ".jsonl", ".csv", ".txt", ".png")  # files of other kinds
# A value of a line, or an item of a list, in YAML: there a name of a task, group or tag stands.
NAMES = re.compile(
    r"""(?:^\s*-|[:\[,])\s*["']?([^\s"',:\[\]{}#]+)["']?\s*(?=[,\]#]|$)""", re.MULTILINE
)
TASKS = re.compile(r"""^["']?(?:task|group)["']?:\s*["']?([^\s"']+)""", re.MULTILINE)


def task_names(words: Sequence[str]) -> list[str]:
    """Names, some of them perhaps several with commas between."""
    return [name.strip() for word in words for name in word.split(",") if name.strip()]


def check_lm_eval(
    tasks: Sequence[str], *, data: str | None = None, include: str | None = None
) -> None:
    """What can be known of lm-eval's tasks without a model, in a second or two.

    Raises InputError: the extra is not installed, an unknown task, a missing file, data that no
    task reads, or without the columns of a task that is shipped with hfscale.
    """
    if find_spec("lm_eval") is None:
        raise InputError('lm_eval: not installed: pip install "hfscale[lm-eval]"')
    if not tasks:
        raise InputError("lm_eval: names no task; `lm-eval ls tasks` lists them")
    if include and not Path(include).is_dir():
        raise InputError(f"lm_eval_include {include}: no such folder; it holds task files (.yaml)")
    local = shipped("recipes/lm_eval_tasks", "*.yaml")
    if data is not None:
        _check_data(data, tasks, local)
    for name in local.keys() & set(tasks):
        local_task(local[name], data)
    others = [name for name in tasks if name not in local]
    if others:
        _check_names(others, local, include)


def _check_data(data: str, tasks: Sequence[str], local: dict[str, Path]) -> None:
    if not Path(data).is_file():
        raise InputError(f"lm_eval_data {data}: no such file; give a JSONL file")
    if local.keys().isdisjoint(tasks):
        raise InputError(
            f"lm_eval_data {data}: is read by {', '.join(local)}, and none of them is asked for"
        )


def _check_names(names: Sequence[str], local: dict[str, Path], include: str | None) -> None:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    texts, included = own_files(), _included_names(include)
    known = included.union(*map(NAMES.findall, texts))
    for name in names:
        if name not in known:
            tasks_and_groups = included.union(*map(TASKS.findall, texts))
            raise unknown_task(name, [*local, *tasks_and_groups])


def own_files() -> list[str]:
    """lm-eval's own task files. They are looked through as text: lm-eval parses all 14,000, which
    takes most of a minute on a busy machine."""
    spec = find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(spec.submodule_search_locations[0], "tasks")
    return [
        path.read_text("utf-8", "replace")
        for path in folder.rglob("*")
        if path.suffix not in NO_TASKS and path.is_file()
    ]


def _included_names(include: str | None) -> set[str]:
    from lm_eval.tasks import TaskManager

    if not include:
        return set()
    for path in sorted(Path(include).rglob("*.yaml")):
        with naming(path):  # lm-eval's own reading has no limits
            parse_yaml(read_limited(path))
    return set(TaskManager(include_path=include, include_defaults=False).all_tasks)


def unknown_task(name: str, known: Sequence[str]) -> InputError:
    """The error for a name that no task, group or tag has; it names the nearest known one."""
    local = shipped("recipes/lm_eval_tasks", "*.yaml")
    return InputError(
        f"lm_eval: unknown task {name}{did_you_mean(name, known)}; shipped are {', '.join(local)}, "
        "`lm-eval ls tasks` lists its own, and --lm_eval_include names a folder of more"
    )


def local_task(path: Path, data: str | None) -> dict:
    """The task's configuration with this data, of which it has the columns: for one that is missing
    lm-eval would take its name as the text."""
    config = read_yaml(path)
    columns = config["metadata"]["columns"]
    expected = f"{', '.join(columns)} for {path.stem}"
    if data is None:
        raise InputError(f"lm_eval_data: missing; expected a file of JSON lines with {expected}")
    read_checked_rows("lm_eval_data", data, lambda row: {*columns} <= {*row}, expected)
    return config | {"dataset_kwargs": {"data_files": {"test": data}}}

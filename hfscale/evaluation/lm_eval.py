"""lm-eval's benchmarks on a loaded model, and its tasks that ship with hfscale and read a file of
the user's own.
"""

import contextlib
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from datasets.fingerprint import Hasher
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfscale.config import shipped
from hfscale.data.tokens import nothing_behind
from hfscale.evaluation.lm_tasks import check_lm_eval, local_task, unknown_task
from hfscale.generation.texts import own_settings_aside
from hfscale.metrics.batches import Journal
from hfscale.models import context_limit
from hfscale.process import InputError


def run_lm_eval(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    data: str | None = None,
    include: str | None = None,
    batch_size: int = 8,
    seed: int = 0,
    limit: int | None = None,
    journal: Journal | None = None,
) -> tuple[dict, dict]:
    """(metrics, facts): `<task>_<metric>` with lm-eval's `_stderr` and, from it, `_ci95` (1.96
    times to each side; None where lm-eval gives no error), and per task its version, examples and
    shots. The same on every rank.

    Args:
        data: JSONL file that the tasks shipped with hfscale (recipes/lm_eval_tasks) read.
        include: folder of more tasks. lm-eval's own are looked up only for names that are in
            neither.
        limit: at most this many examples per task.
        journal: where lm-eval keeps its answers; those to the same settings are not asked for
            again.

    Raises:
        InputError: as `check_lm_eval`, data that cannot be had or read, or a task that the model's
            context is too short for.
    """
    check_lm_eval(tasks, data=data, include=include)
    import lm_eval
    from lm_eval.api.model import CachingLM
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    local = shipped("recipes/lm_eval_tasks", "*.yaml")
    manager = TaskManager(include_path=include, include_defaults=False)
    if not {*local, *manager.all_tasks}.issuperset(tasks):
        manager = TaskManager(include_path=include)  # seconds: lm-eval reads its 14,000 tasks
    if unknown := [name for name in tasks if name not in {*local, *manager.all_tasks}]:
        raise unknown_task(unknown[0], [*local, *manager.all_tasks])
    asked = [local_task(local[name], data) if name in local else name for name in tasks]
    prompts = nothing_behind(tokenizer)
    state = PartialState()
    lm = HFLM(pretrained=model, tokenizer=prompts, batch_size=batch_size)
    if state.num_processes > 1:
        # With a model that is loaded already, HFLM takes itself for the only process.
        lm.accelerator = Accelerator()
        lm._rank = state.process_index
        lm._world_size = state.num_processes
    with contextlib.redirect_stdout(sys.stderr):
        try:
            loaded = manager.load(asked)
        except Exception as error:  # the Hub, the files and the tasks each have errors of their own
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise InputError(
                f"lm_eval {','.join(tasks)}: the task or its data cannot be loaded: {reason}"
            ) from None
        for task in loaded["tasks"].values():
            task.set_fewshot_seed(seed)
        if journal:
            name = f"lm_eval-{Hasher.hash(journal.settings)}.rank{state.process_index}.db"
            lm = CachingLM(lm, str(journal.folder / name))
        try:
            with own_settings_aside(model, tokenizer):
                results = lm_eval.evaluate(
                    lm, loaded, limit=limit, log_samples=False, bootstrap_iters=1000
                )
        except AssertionError as error:  # its way to say that the model does not fit the task
            too_long = f"a part of it is longer than the model's context of {context_limit(model)}"
            reason = str(error) or f"{too_long} tokens"
            raise InputError(
                f"lm_eval {','.join(tasks)}: lm-eval cannot ask this model: {reason}"
            ) from None
    # The results are on rank 0.
    metrics_and_facts = [_read(results) if state.is_main_process else None]
    return broadcast_object_list(metrics_and_facts)[0]


def _read(results: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    metrics: dict[str, Any] = {}
    for task, values in results["results"].items():
        for key, value in values.items():
            # lm-eval writes `acc,none`: the metric and the filter that its answers went through.
            metric, _, answer_filter = key.partition(",")
            is_value = isinstance(value, int | float) and not metric.endswith("_stderr")
            if not is_value or not answer_filter:
                continue
            name = f"{task}_{metric}"
            if answer_filter != "none":
                name = f"{name}_{answer_filter}"
            error = values.get(f"{metric}_stderr,{answer_filter}")
            metrics |= _with_interval(name, value, error if isinstance(error, float) else None)
    facts = {
        task: {
            "version": results["versions"].get(task),
            "num_fewshot": results["n-shot"].get(task),
            "examples": results["n-samples"].get(task, {}).get("effective"),
        }
        for task in results["results"]
    }
    return metrics, {"lm_eval": version("lm_eval"), "tasks": facts}


def _with_interval(name: str, value: float, error: float | None) -> dict[str, Any]:
    """A value with its standard error and the 95 % interval of a normal distribution."""
    interval = None
    if error is not None:
        interval = [float(value - 1.96 * error), float(value + 1.96 * error)]
    return {name: float(value), f"{name}_ci95": interval, f"{name}_stderr": error}

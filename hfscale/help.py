"""What `hfscale`, and a recipe's --help, print."""

import ast
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from hfscale.options import describe

# Recipes in the order of the path from text to a model in use; others come after them.
GROUPS = {
    "text": ("prepare_data", "prepare_data_cluster", "train_tokenizer"),
    "training": (
        "quickstart",
        "plan",
        "pretrain",
        "distill",
        "finetune",
        "finetune_task",
        "finetune_preference",
        "finetune_reward",
        "finetune_picture",
    ),
    "how good": ("score", "compare", "scale", "attention_maps", "bias_probe", "memorization"),
    "in use": ("generate", "chat", "serve", "export", "push"),
    "what was done": ("report", "runs", "verify", "replay"),
}
OTHERS = "more"
EXAMPLES = (
    "hfscale quickstart",
    "hfscale pretrain --config tiny_cpu",
    'hfscale finetune --model gpt2 --source "texts/*.txt" --lora_r 16',
    'hfscale generate --model runs/quickstart --prompts "The"',
    "hfscale score --model runs/quickstart --source embedded:python-prose",
)
# Recipes that bring no config, and why; every other one has at least tiny_cpu.
WITHOUT_CONFIG = {
    "plan": "reads the configs of what it plans: --config pretrain/gpt2_xl",
    "quickstart": "is, with its defaults, the shortest complete run",
    "push": "sends one folder to an account of your own",
    "report": "takes the folders of runs, and nothing that could be tuned",
    "runs": "takes the folder that the runs lie in",
    "verify": "takes the folders to read",
    "replay": "takes the folder of a run, which says all the rest",
}
# Of TrainingArguments, those that most runs set; they stand first, with upstream's defaults.
MOST_SET = (
    "output_dir",
    "max_steps",
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
)
MOST_COLUMNS = 110
MODELINE = "# yaml-language-server"


def columns() -> int:
    """Of the terminal, or 80 where there is none; longer lines are hard to read."""
    return min(shutil.get_terminal_size((80, 24)).columns, MOST_COLUMNS)


def docstring(recipe: Path) -> str:
    """What a script says of itself, read and not run."""
    return ast.get_docstring(ast.parse(recipe.read_text("utf-8"))) or ""


def table(rows: Mapping[str, str], width: int | None = None) -> str:
    """Names and texts in two columns, a text that is too long cut between words."""
    name_width = max(map(len, rows))
    room = (width or columns()) - name_width - 4
    return "\n".join(
        f"  {name:<{name_width}}  {textwrap.shorten(text, max(room, 20), placeholder=' ...')}"
        for name, text in rows.items()
    )


def grouped(recipes: Mapping[str, Path]) -> str:
    """Every recipe with what its docstring begins with, by `GROUPS`."""
    known = {name for names in GROUPS.values() for name in names}
    groups = GROUPS | {OTHERS: tuple(name for name in recipes if name not in known)}
    width = max(map(len, recipes))
    parts = []
    for title, names in groups.items():
        rows = {
            f"{name:<{width}}": docstring(recipes[name]).partition("\n\n")[0]
            for name in names
            if name in recipes
        }
        if rows:
            parts.append(f"{title}\n{table(rows)}")
    return "\n".join(parts)


def recipe_help(
    cls: type, recipe: Path, kinds: Mapping[str, Any], planned: Iterable[str] = ()
) -> str:
    """A recipe's usage: what it does, its shipped configs, its arguments, then upstream's names.

    Args:
        cls: its argument dataclass.
        kinds: types of all arguments that it takes, by name.
        planned: recipes whose arguments it takes, too.
    """
    own = {item.name: item for item in fields(cls) if item.name in kinds}
    upstream = [name for name in kinds if name not in own]
    lines = [f"usage: hfscale {recipe.stem} [--config FILE.yaml ...] [--name value ...]", ""]
    lines += [docstring(recipe), ""]
    lines += _config_lines(recipe)
    lines += [f"  --{name} <{describe(kinds[name])}>" for name in MOST_SET if name in upstream]
    for item in nearest_first(cls, own.values()):
        lines += _argument_lines(item, kinds[item.name])
    if upstream:
        lines += [
            "",
            "and every argument of transformers.TrainingArguments (names and meaning as there):",
            textwrap.fill(
                " ".join(upstream), columns(), initial_indent="  ", subsequent_indent="  "
            ),
        ]
    if names := ", ".join(planned):
        lines += ["", f"and every argument of the recipe: {names} (see their --help)"]
    return "\n".join(lines)


def _config_lines(recipe: Path) -> list[str]:
    """The shipped configs, each with the first line that says what it is."""
    configs = sorted(recipe.parent.glob(f"configs/{recipe.stem}/*.yaml"))
    rows = {f"--config {path.stem}": _first_comment(path) for path in configs}
    if rows:
        return ["shipped configs:", table(rows), "", "arguments:"]
    if why := WITHOUT_CONFIG.get(recipe.stem):
        return [f"shipped configs: none; it {why}", "", "arguments:"]
    return ["arguments:"]


def _first_comment(config: Path) -> str:
    lines = config.read_text("utf-8").splitlines()
    comments = [line for line in lines if line.startswith("# ") and not line.startswith(MODELINE)]
    return comments[0].removeprefix("# ") if comments else ""


def nearest_first(cls: type, items: Iterable[Field]) -> list[Field]:
    """A class's own arguments before those that it shares with other recipes."""
    declared = cls.__dict__.get("__annotations__", {})
    return sorted(items, key=lambda item: item.name not in declared)


def _argument_lines(item: Field, kind: Any) -> list[str]:
    default = item.default if item.default_factory is MISSING else item.default_factory()
    lines = [f"  --{item.name} <{describe(kind)}>  default: {default}"]
    if text := item.metadata.get("help"):
        lines.append(
            textwrap.fill(text, columns(), initial_indent=" " * 6, subsequent_indent=" " * 6)
        )
    return lines

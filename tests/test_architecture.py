"""The house stays easy to see: who may import whom, what stays light, what a recipe is."""

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from hfscale.api import ROOMS as RECIPE_ROOMS

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "hfscale").rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("[!_]*.py"))
HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "evaluate",
    "deepspeed",
    "peft",
    "numpy",
)
# Imported before the arguments are checked, by the command, or on machines that only plan or draw.
LIGHT = (
    "__init__",
    "api",
    "arguments",
    "cli",
    "comparing",
    "completion",
    "config",
    "finished_run",
    "folders",
    "full_disk",
    "help",
    "launch",
    "manifest",
    "many_runs",
    "lock",
    "options",
    "planning",
    "process",
    "recipe_room",
    "report.run_list",
    "run_record",
    "scaling",
    "schema",
    "signatures",
    "stopping",
    "generation.task_prompt",
    "data.templates",
    "serving.extra",
)
LIGHT_BUT_FOR_NUMPY = (
    "hfscale.comparing.page",
    "hfscale.comparing.speedrun",
    "hfscale.comparing.statistics",
    "hfscale.comparing.study",
    "hfscale.comparing.training",
    "hfscale.scaling.law",
    "hfscale.scaling.page",
    "hfscale.scaling.study",
    "hfscale.planning.page",
)  # figures are numbers


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


# ---- import direction


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_library_does_not_know_the_recipes(path):
    assert not [
        name
        for name in imports(parsed(path))
        if name.split(".")[0] in ("recipes", "tests") or name.startswith("hfscale.recipes")
    ]


def test_the_library_has_no_cycles():
    names = {module_of(path): path for path in MODULES}
    edges = {
        name: {found for found in imports(parsed(path)) if found in names and found != name}
        for name, path in names.items()
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"{' -> '.join(above)} -> {name}"
        if name not in done:
            for found in edges[name]:
                visit(found, (*above, name))
            done.add(name)

    for name in edges:
        visit(name, ())
    assert "hfscale.process" in edges["hfscale.training.trainer"]  # the search does find edges


# From the lowest up: a room knows those before it, and nothing of those behind it.
ROOMS = (
    "report",
    "planning",
    "data",
    "cleaning",
    "metrics",
    "generation",
    "tasks",
    "serving",
    "training",
    "pictures",
    "rewards",
    "replaying",
    "evaluation",
    "probes",
    "scaling",
    "comparing",
    "export",
)


def room_of(module: str) -> str | None:
    """The folder in which a module lies; None: at the top."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 else None


def test_no_room_knows_a_higher_one():
    names = {module_of(path) for path in MODULES}
    assert {room_of(name) for name in names} == {None, *ROOMS}
    upward = []
    for path in MODULES:
        module = module_of(path)
        for imported in imports(parsed(path)) & names:
            rooms = (room_of(module), room_of(imported))
            if None not in rooms and ROOMS.index(rooms[1]) > ROOMS.index(rooms[0]):
                upward.append(f"{module} -> {imported}")
    assert not upward


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_imports_what_is_heavy_only_inside_main(path):
    top = ast.Module(
        [node for node in parsed(path).body if not isinstance(node, ast.FunctionDef)], []
    )
    assert {name.split(".")[0] for name in imports(top)}.isdisjoint(HEAVY)
    assert not [name for name in imports(parsed(path)) if name.split(".")[0] == "recipes"]
    private = [
        name for name in imports(parsed(path)) if name.startswith("hfscale") and "._" in name
    ]
    assert not private, "a recipe uses the public side of the library"


def is_light(module: str) -> bool:
    name = module.removeprefix("hfscale.")
    return name == "hfscale" or any(
        name == light or name.startswith(f"{light}.") for light in LIGHT
    )


@pytest.mark.parametrize("module", sorted(filter(is_light, map(module_of, MODULES))))
def test_light_modules_import_nothing_heavy(module):
    heavy = set(HEAVY) - ({"numpy"} if module in LIGHT_BUT_FOR_NUMPY else set())
    code = (
        f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}} & {heavy!r})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


@pytest.mark.slow
def test_the_trainer_can_be_taken_alone():
    """`LMTrainer` is what others copy first: it stands on a handful of modules."""
    code = "import sys, hfscale.training.trainer; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    packages = {"hfscale", "hfscale.training", "hfscale.training.trainer"}
    pulled = {name for name in result.stdout.split() if name.split(".")[0] == "hfscale"} - packages
    assert pulled and len(pulled) <= 6, sorted(pulled)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_importing_a_module_has_no_effects(path):
    """At module level there are imports, constants, classes and functions; no loops, no bare
    calls.
    """
    for node in parsed(path).body:
        allowed = (
            ast.Import,
            ast.ImportFrom,
            ast.ClassDef,
            ast.FunctionDef,
            ast.AsyncFunctionDef,
            ast.Assign,
            ast.AnnAssign,
        )
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_room = ast.unparse(node) == "sys.modules[__name__].__class__ = RecipeRoom"
        if is_room:
            assert path.parent.name in RECIPE_ROOMS
            continue
        is_entry = isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        assert isinstance(node, allowed) or is_docstring or is_entry, f"line {node.lineno}"
        if isinstance(node, ast.Assign):
            assert all(
                isinstance(target, ast.Name)
                and target.id.isupper()
                or ast.unparse(target) == "__version__"
                for target in node.targets
            ), f"line {node.lineno}: not a constant"
    assert not [node.lineno for node in ast.walk(parsed(path)) if isinstance(node, ast.Global)]


# ---- what a recipe is


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipes_have_one_form(path):
    tree = parsed(path)
    assert ast.get_docstring(tree)
    main = next(
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"
    )
    assert ast.unparse(main.args) == "argv: list[str] | None=None"
    assert ast.unparse(main.body[0].value).startswith("parse_args(")  # before anything heavy
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert classes[-1].name.endswith("Arguments")
    assert ast.unparse(main.body[0].value).startswith(f"parse_args({classes[-1].name}, argv")
    assert (
        sum(node.name.lower() == f"{path.stem.replace('_', '')}arguments" for node in classes) == 1
    )
    assert ast.unparse(tree.body[-1]) == "if __name__ == '__main__':\n    run(main)"


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_every_own_argument_is_explained(path):
    for node in parsed(path).body:
        for item in node.body if isinstance(node, ast.ClassDef) else []:
            if isinstance(item, ast.AnnAssign) and item.target.id != "training":
                assert "'help':" in ast.unparse(item.value), item.target.id


def test_script_names_hide_no_other_module():
    """A launched script's folder comes first on the path: recipes/evaluate.py would be imported for
    `evaluate`.
    """
    installed = {name.lower() for name in importlib.metadata.packages_distributions()} | set(
        sys.stdlib_module_names
    )
    assert "evaluate" in installed
    assert not {path.stem for path in RECIPES} & installed


# ---- public things are documented


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_public_functions_say_what_they_do(path):
    tree = parsed(path)
    assert not tree.body or ast.get_docstring(tree)
    for node in tree.body:
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        if isinstance(node, kinds) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name

"""The course's chapters: their shape, in both languages; that they run in one short go; and what
they say when something is missing.
"""

import ast
import importlib.util
import json
import math
import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import psutil
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from transformers import TrainingArguments

import hfscale
from hfscale import course
from hfscale.config import arguments_class, check_recipe_args, names_of, shipped
from hfscale.process import InputError

ROOT = Path(__file__).parents[2]
NUMBERS = range(1, len(course.CHAPTERS) + 1)
CJK = re.compile(r"[\u4e00-\u9fff]")
FORMULA = re.compile(r"\$\$.*?\$\$|\$.*?\$", re.DOTALL)
EXTRAS = {
    "hfscale": "",
    "peft": "",
    "sacrebleu": "",
    "trl": "trl",
    "deepspeed": "deepspeed",
    "starlette": "serve",
    "uvicorn": "serve",
    "gguf": "export",
}


def load_runner():
    spec = importlib.util.spec_from_file_location("course_run", ROOT / "docs/course/run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runner = load_runner()


def chapter(number: int):
    return runner.read_chapter(runner.chapter_file(number))


def code_of(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def plain_python(cell: str) -> str:
    """The cell as Python, its magics as calls."""
    return TransformerManager().transform_cell(cell)


def test_there_are_twelve_and_no_others():
    files = sorted(path.name for path in (ROOT / "docs/course").glob("[0-9]*"))
    assert files == [f"{course.file_name(number)}.py" for number in NUMBERS]
    assert len(NUMBERS) == 12


# ---- shape


@pytest.mark.parametrize("number", NUMBERS)
def test_each_text_stands_in_english_and_then_in_chinese(number):
    cells = chapter(number).cells
    texts = [(i, cell) for i, cell in enumerate(cells) if cell.cell_type == "markdown"]
    assert [cell.metadata["lang"] for _, cell in texts] == ["en", "zh"] * (len(texts) // 2)
    for (i, english), (j, chinese) in zip(texts[::2], texts[1::2], strict=True):
        assert j == i + 1  # nothing runs between the two
        assert not CJK.search(english.source)
        assert CJK.search(chinese.source)
        shape = [
            cell.source.count("\n# ") + cell.source.startswith("# ") for cell in (english, chinese)
        ]
        assert shape[0] == shape[1]
        displayed = [
            re.findall(r"\$\$.*?\$\$", cell.source, re.DOTALL) for cell in (english, chinese)
        ]
        assert displayed[0] == displayed[1]  # the same formulas


@pytest.mark.parametrize("number", NUMBERS)
def test_a_chapter_asks_installs_runs_and_ends_in_a_number(number):
    notebook = chapter(number)
    assert notebook.cells[0].source.startswith(f"# {number}. ")
    assert notebook.cells[1].source.startswith(f"# {number}. ")
    assert "**Question: " in notebook.cells[0].source
    assert "**本章的问题：" in notebook.cells[1].source
    assert "**What to take along.**" in notebook.cells[-2].source
    assert "**记住这些。**" in notebook.cells[-1].source
    install, *cells = code_of(notebook)
    assert 3 <= len(cells) <= 6
    # The number is the last thing that is computed, and there is one.
    ends = [call for cell in cells for call in calls(cell, "ends_with")]
    assert [call.args[0].value for call in ends] == [number]
    assert calls(cells[-1], "ends_with")
    assert all(cell.get("outputs", []) == [] for cell in notebook.cells)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_cell_installs_only_what_is_missing(number):
    notebook = chapter(number)
    install = code_of(notebook)[0]
    code = plain_python(install)
    [wanted] = re.findall(r"\[(\"hfscale\".*?)\]", install)
    names = ast.literal_eval(f"[{wanted}]")
    extras = ",".join(dict.fromkeys(EXTRAS[name] for name in names if EXTRAS[name]))
    package = f'"hfscale[{extras}]"' if extras else "hfscale"
    assert install.endswith(f"    %pip install -q {package}")
    installed = []
    notebooks = type("Shell", (), {"run_line_magic": lambda self, *line: installed.append(line)})()
    for is_there in (True, False):
        fake = type("importlib", (), {})
        fake.util = type("util", (), {"find_spec": lambda name, there=is_there: there or None})
        code_after_import = code.replace("import importlib.util", "")
        exec(code_after_import, {"importlib": fake, "get_ipython": lambda: notebooks})
        assert bool(installed) is not is_there
    assert installed == [("pip", f"install -q {package}")]


def calls(cell: str, name: str | None, module: str = "course") -> list[ast.Call]:
    """Of `<module>.<name>` in a cell; None: of any name."""
    return [
        node
        for node in ast.walk(ast.parse(plain_python(cell)))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and name in (None, node.func.attr)
        and getattr(node.func.value, "id", "") == module
    ]


def test_what_a_chapter_needs_an_earlier_one_makes():
    made: dict[str, int] = {}
    for number in NUMBERS:
        cells = code_of(chapter(number))
        named = [call for cell in cells for call in calls(cell, "place")]
        needed = {
            keyword.arg: keyword.value.value
            for cell in cells
            for call in calls(cell, "needs")
            for keyword in call.keywords
        }
        assert needed == {name: made[name] for name in needed}
        folders = [
            str(call.args[0].value)
            for call in named
            if call.args and isinstance(call.args[0], ast.Constant)
        ]
        for name in folders:
            made.setdefault(name, number)
        # It reads nothing of an earlier one that it does not name as needed.
        assert {name for name in folders if made[name] < number} <= set(needed)


@pytest.mark.parametrize("number", NUMBERS)
def test_each_option_of_a_call_is_one_of_its_recipe(number):
    recipes = shipped("recipes", "[!_]*.py")
    for cell in code_of(chapter(number)):
        tree = ast.parse(plain_python(cell))
        shared = [key.value for node in ast.walk(tree) for key in shared_keys(node)]
        for call in calls(cell, None, module="hfscale"):
            name = call.func.attr
            assert hasattr(hfscale, name)
            if name in recipes:
                options = {keyword.arg for keyword in call.keywords if keyword.arg}
                options |= set(shared) if len(options) < len(call.keywords) else set()
                assert options <= options_of(recipes[name]) | {"config"}


def shared_keys(node: ast.AST) -> list[ast.Constant]:
    """Of `shared = {...}`, which calls take with `**shared`."""
    is_shared = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "shared"
    return node.value.keys if is_shared else []


def options_of(recipe: Path) -> set[str]:
    names = names_of(arguments_class(recipe))
    upstream = {item.name for item in fields(TrainingArguments)} if "training" in names else set()
    return names | upstream


# ---- languages and line ends


def test_notebooks_of_both_languages_have_one_code(tmp_path):
    assert runner.main(["--no-execute", "--output_dir", str(tmp_path)]) == 0
    for number in NUMBERS:
        english, chinese = (
            json.loads((tmp_path / lang / f"{course.file_name(number)}.ipynb").read_text("utf-8"))
            for lang in runner.LANGUAGES
        )
        kinds = [[cell["cell_type"] for cell in book["cells"]] for book in (english, chinese)]
        assert kinds[0] == kinds[1]
        for one, other in zip(english["cells"], chinese["cells"], strict=True):
            if one["cell_type"] == "code":
                assert one["source"] == other["source"]
                assert one["outputs"] == []
            else:
                assert not CJK.search("".join(one["source"]))
                assert CJK.search("".join(other["source"]))


def test_windows_line_ends_change_nothing(tmp_path):
    source = runner.chapter_file(3).read_bytes()
    copy = tmp_path / "03_model.py"
    copy.write_bytes(source.replace(b"\n", b"\r\n"))
    kept = [cell.source for cell in runner.read_chapter(copy).cells]
    assert kept == [cell.source for cell in chapter(3).cells]
    assert "\r" not in "".join(kept)


# ---- what the chapters share


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv(course.FOLDER, str(tmp_path))
    monkeypatch.delenv(course.MOST_STEPS, raising=False)
    return tmp_path


def test_a_chapter_begun_alone_says_which_comes_first(place):
    (place / "data").mkdir()
    course.needs(data=1)
    with pytest.raises(
        InputError, match=r"/model: not there; run chapter 4 first \(04_pretraining\)"
    ):
        course.needs(data=1, model=4)


def test_results_lie_below_the_folder_where_the_course_is_read(monkeypatch):
    monkeypatch.delenv(course.FOLDER, raising=False)
    assert course.place("model") == "runs/course/model"


def test_the_number_is_kept_and_asserted(place, capsys):
    course.ends_with(4, "perplexity", 60.0, at_most=75)
    with pytest.raises(AssertionError, match="perplexity: 80, expected at most 75"):
        course.ends_with(4, "perplexity", 80.0, at_most=75, is_learned=True)
    with pytest.raises(AssertionError, match="no number"):
        course.ends_with(5, "ratio", math.inf, at_least=1)
    assert "chapter 4: perplexity 60 (at most 75)" in capsys.readouterr().out


def test_cut_short_only_what_is_learned_goes_unasserted(place, monkeypatch):
    monkeypatch.setenv(course.MOST_STEPS, "2")
    assert (course.steps(900), course.steps(1)) == (2, 1)
    course.ends_with(4, "perplexity", 1800.0, at_most=75, is_learned=True)
    assert course.read_numbers()["4"] == {
        "name": "perplexity",
        "value": 1800.0,
        "allowed": "at most 75",
    }
    with pytest.raises(AssertionError):
        course.ends_with(3, "difference", 1.0, at_most=1e-4)
    monkeypatch.setenv(course.MOST_STEPS, "few")
    with pytest.raises(
        InputError, match="HFSCALE_COURSE_STEPS: got 'few', expected a whole number"
    ):
        course.steps(3)


def test_a_notebook_shows_wrong_input_in_one_line(place, capsys):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    code = "from hfscale import course\ncourse.needs(model=4)"
    assert isinstance(shell.run_cell(code, silent=True).error_in_exec, InputError)
    shown = capsys.readouterr().out.strip().splitlines()
    assert len(shown) == 1
    assert shown[0].startswith("error: ")
    assert "run chapter 4 first" in shown[0]


# ---- the whole course, cut short


@pytest.fixture
def course_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(course.FOLDER, str(tmp_path / "results"))
    monkeypatch.setenv(course.MOST_STEPS, "2")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    return tmp_path


def run_cells(number: int) -> None:
    """The chapter's cells in this process, as a notebook's kernel runs them."""
    defined: dict = {"__name__": "__main__"}
    for cell in code_of(chapter(number)):
        exec(compile(plain_python(cell), course.file_name(number), "exec"), defined)


@pytest.mark.slow
def test_a_notebook_is_executed_once_without_noise_and_its_kernel_ends(tmp_path, capfd):
    source = tmp_path / "99_noise.py"
    source.write_text(
        '# %% [markdown] lang="en"\n# word\n# %% [markdown] lang="zh"\n# 词\n# %%\n'
        "import os, sys\nprint('one', end='\\rtwo\\n')\n"
        "print(' 50%|#  | 1/2', file=sys.stderr)\nprint(os.getpid())\n"
    )
    notebook = runner.read_chapter(source)
    cost = runner.execute(notebook)
    assert cost.minutes > 0
    runner.write_notebooks(notebook, tmp_path, "noise")
    outputs = []
    for language, word in (("en", "word"), ("zh", "词")):
        cells = json.loads((tmp_path / language / "noise.ipynb").read_text("utf-8"))["cells"]
        assert [cell["source"] for cell in cells[:-1]] == [[word]]
        [output] = cells[-1]["outputs"]
        outputs.append("".join(output["text"]).split())
    assert outputs[0] == outputs[1]
    assert outputs[0][0] == "two"
    assert not psutil.pid_exists(int(outputs[0][1]))
    assert "encryption" not in capfd.readouterr().err  # it is not to be reached by a network


# All of them take minutes of a CPU. Of the others, other tests hold what needs no training.
RUN_SHORT = (1, 2, 3, 4, 5, 8, 11, 12)


def pretend_to_launch(command: list[str], **streams) -> subprocess.CompletedProcess:
    """Check a command of chapter 11 as `hfscale` does, and leave what one process has trained.

    That real ranks train alike, tests/launch/test_equivalence.py shows.
    """
    recipe, accelerate, way, processes, number, *words = command[3:]
    assert (accelerate, processes, number) == ("--accelerate", "--num_processes", "2")
    assert (ROOT / "accelerate_configs" / f"{way}.yaml").is_file()
    script = ROOT / "recipes/pretrain.py" if recipe == "pretrain" else Path(recipe)
    check_recipe_args(script, words)
    shutil.copytree(course.place("processes/one"), words[words.index("--output_dir") + 1])
    return subprocess.CompletedProcess(command, 0)


@pytest.mark.slow(seconds=40)
@pytest.mark.needs("deepspeed")
def test_chapters_run_in_two_steps_and_what_needs_no_training_holds(course_folder, monkeypatch):
    load_documents = hfscale.load_documents

    def half_of_the_documents(source):
        documents = load_documents(source)
        return documents.select(range(0, len(documents), 2))

    monkeypatch.setattr(hfscale, "load_documents", half_of_the_documents, raising=False)
    for number in RUN_SHORT:
        with monkeypatch.context() as patched:
            if number == 11:
                patched.setattr("subprocess.run", pretend_to_launch)
            run_cells(number)
    run_cells(3)  # a second time, on results that are there
    assert list(course.read_numbers()) == [str(number) for number in RUN_SHORT]

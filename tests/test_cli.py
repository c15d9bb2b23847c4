"""The hfscale command: lists, copies, reports, and refuses before anything heavy is imported."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hfscale import cli
from hfscale.help import docstring

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("[!_]*.py"))


@pytest.fixture
def hfscale(capsys):
    """hfscale(words...) in this process: (status, stdout, stderr)."""

    def run(*words: str) -> tuple[int, str, str]:
        try:
            status = cli.main(list(words))
        except SystemExit as end:
            status = end.code
        return (status, *capsys.readouterr())

    return run


def test_help_lists_every_recipe_with_its_first_words(hfscale, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = hfscale("--help")
    assert status == 0
    lines = out.splitlines()
    for name in RECIPES:
        text = docstring(ROOT / "recipes" / f"{name}.py").split()
        [shown] = [line.split() for line in lines if line.split()[:1] == [name]]
        assert shown[1:4] == text[:3], name
    for word in ("recipes", "copy", "env", "--accelerate", "--num_processes"):
        assert f"  {word}" in out
    assert max(map(len, lines)) <= 80
    assert out.index("prepare_data") < out.index("pretrain  ") < out.index("generate  ")
    assert hfscale() == (status, out, "")


def test_recipes_lists_scripts_and_configs(hfscale):
    status, out, _ = hfscale("recipes")
    assert status == 0
    for name in RECIPES:
        assert f"{name}  ({ROOT / 'recipes' / name}.py)" in out
    for path in (ROOT / "recipes" / "configs").glob("*/*.yaml"):
        assert f"    --config {path.stem}\n" in out
    names = sorted(path.stem for path in (ROOT / "accelerate_configs").glob("*.yaml"))
    assert out.endswith(f"launch configs: {', '.join(names)}\n")


def test_version(hfscale):
    from hfscale import __version__

    assert hfscale("--version") == (0, f"hfscale {__version__}\n", "")


def test_recipe_help_shows_both_kinds_of_arguments(hfscale):
    status, out, _ = hfscale("pretrain", "--help")
    assert status == 0
    places = [
        out.index(words)
        for words in (
            "Pretrain a causal",
            "--config tiny_cpu",
            "--output_dir",
            "--num_hidden_layers",
            "lr_scheduler_type",
            "--num_machines",
        )
    ]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pretrian"], "did you mean pretrain?"),
        (["xyz", "--source", "a"], "see hfscale --help"),
        (["./missing.py"], "unknown"),
        (["env", "--json"], "hfscale env --json"),
        (["copy"], "copy RECIPE [FOLDER]"),
        (["copy", "pretrian"], "did you mean pretrain?"),
        (["pretrain", "--learning_rat", "1"], "learning_rate"),
        (["pretrain", "--config", "tiny_gpu"], "tiny_cpu"),
        (["pretrain", "--accelerate", "zero"], "zero1, zero2, zero3"),
        (["pretrain", "--num_processes"], "--num_processes: got '', expected int"),
    ],
)
def test_bad_input_is_one_line_and_status_2(hfscale, words, says):
    status, out, error = hfscale(*words)
    assert (status, out) == (2, "")
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error


@pytest.mark.parametrize(
    "words", ["--help", "recipes", "pretrain --help", "pretrain --bad 1", "copy xyz"]
)
def test_light_verbs_import_nothing_heavy(words):
    code = (
        "import sys\nfrom hfscale.cli import main\ntry:\n    main(sys.argv[1:])\nexcept "
        "SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'accelerate', 'numpy'} & "
        "sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, *words.split()], cwd=ROOT, check=True, capture_output=True
    )


def test_copy_gives_script_and_configs(hfscale, tmp_path):
    status, out, _ = hfscale("copy", "pretrain", str(tmp_path / "mine"))
    assert status == 0
    made = {
        path.relative_to(tmp_path / "mine"): path
        for path in (tmp_path / "mine").rglob("*")
        if path.is_file()
    }
    sources = [
        ROOT / "recipes" / "pretrain.py",
        *(ROOT / "recipes" / "configs" / "pretrain").glob("*.yaml"),
    ]
    schema = Path("configs/pretrain/schema.json")
    expected = {source.relative_to(ROOT / "recipes"): source.read_bytes() for source in sources}
    expected[schema] = hfscale("schema", "pretrain")[1].removesuffix("\n").encode()
    assert {name: path.read_bytes() for name, path in made.items()} == expected
    *wrote, following = out.splitlines()
    assert sorted(wrote) == sorted(f"wrote {path}" for path in made.values())
    script = tmp_path / "mine" / "pretrain.py"
    assert (
        following
        == f"next: hfscale {script} --config {script.parent / 'configs/pretrain/tiny_cpu.yaml'}"
    )
    assert hfscale(str(script), "--config", "tiny_cpu", "--bad", "1")[2].startswith(
        "error: command line: unknown"
    )


def test_copy_goes_to_the_current_folder(hfscale, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = hfscale("copy", "score")
    assert status == 0 and out.startswith("wrote score.py\n")
    assert Path("score.py").is_file() and Path("configs/score/tiny_cpu.yaml").is_file()


def test_copy_overwrites_nothing(hfscale, tmp_path):
    taken = tmp_path / "configs" / "pretrain" / "tiny_cpu.yaml"
    taken.parent.mkdir(parents=True)
    taken.write_text("mine")
    status, out, error = hfscale("copy", "pretrain", str(tmp_path))
    assert (status, out) == (2, "") and str(taken) in error
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [
        taken
    ] and taken.read_text() == "mine"


def test_copy_to_a_place_that_cannot_be_written(hfscale, tmp_path):
    (tmp_path / "file").write_text("")
    status, out, error = hfscale("copy", "pretrain", str(tmp_path / "file" / "below"))
    assert (status, out) == (2, "") and "cannot write" in error and error.count("\n") == 1


def test_env_reports(hfscale, monkeypatch):
    import torch
    import transformers

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    status, out, _ = hfscale("env")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert status == 0
    assert (rows["torch"], rows["transformers"]) == (torch.__version__, transformers.__version__)
    assert rows["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "GiB" in rows["devices"] or "bf16 matrix units" in rows["devices"]
    assert "not asked" in rows["Hub"]


def test_env_names_missing_extras(hfscale, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    real = cli.importlib.metadata.distributions
    monkeypatch.setattr(
        cli.importlib.metadata, "distributions", lambda: (d for d in real() if d.name != "wandb")
    )
    assert 'wandb (pip install "hfscale[wandb]")' in hfscale("env")[1]


def test_env_asks_the_hub_for_two_seconds_at_most(hfscale, monkeypatch):
    import torch  # noqa: F401

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with contextlib.ExitStack() as opened:
        server = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        for _ in range(4):  # the queue is full, and nobody answers
            client = opened.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        assert "no answer within 2 s" in hfscale("env")[1]


PRINTING = {
    "print": "print('line\\n' * 99_999)",
    "one line, kept until the end": "print('line')",
    "rich": "import rich; rich.print('line\\n' * 999)",
    "bad input": "print('line'); raise InputError('wrong')",
}


@pytest.mark.parametrize("also_errors", [False, True], ids=["stdout", "stdout and stderr"])
@pytest.mark.parametrize("words", ["recipes", "--help", "pretrain --help", *PRINTING])
def test_ends_silently_where_nobody_reads_any_more(words, also_errors):
    """As behind `| head -1`: no traceback, and the status that a shell gives to SIGPIPE."""
    program = f"from hfscale.process import InputError, run\ndef main():\n    {PRINTING.get(words)}\nrun(main)"
    command = ["-c", program] if words in PRINTING else ["-m", "hfscale.cli", *words.split()]
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=writer,
        text=True,
        stderr=writer if also_errors else subprocess.PIPE,
    )
    os.close(writer)
    assert result.returncode == 128 + signal.SIGPIPE
    assert (
        also_errors
        or result.stderr == ""
        or (words == "bad input" and result.stderr == "error: wrong\n")
    )


def test_ctrl_c_is_one_line():
    program = "import os, signal\nfrom hfscale.process import run\nrun(lambda: os.kill(os.getpid(), signal.SIGINT))"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True
    )
    assert (result.returncode, result.stderr) == (128 + signal.SIGINT, "stopped by Ctrl-C\n")


def test_finds_its_files_when_installed_from_a_wheel(tmp_path):
    """In a wheel the scripts and launch configs lie inside the package."""
    package = tmp_path / "hfscale"
    shutil.copytree(ROOT / "hfscale", package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("recipes", "accelerate_configs"):
        shutil.copytree(ROOT / name, package / name, ignore=shutil.ignore_patterns("__pycache__"))
    result = subprocess.run(
        [sys.executable, "-m", "hfscale.cli", "recipes"],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert f"pretrain  ({package / 'recipes' / 'pretrain.py'})" in result.stdout
    assert "launch configs: cpu, cpu_2proc, ddp" in result.stdout
    code = (
        "import hfscale, hfscale.recipes.verify as verify; "
        "print(verify.__file__, hfscale.pretrain.__name__, hfscale.plan(gpu='l4')['recommended'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    said = f"{package / 'recipes' / 'verify.py'} pretrain single_gpu"
    assert result.stdout.splitlines()[-1:] == [said], result.stderr


def test_made_tasks_find_their_sample_data_when_installed_from_a_wheel(tmp_path):
    package = tmp_path / "hfscale"
    shutil.copytree(ROOT / "hfscale", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "recipes" / "configs", package / "recipes" / "configs")
    load = "from hfscale.tasks.sample_data import load_sample_data as load; "
    result = subprocess.run(
        [sys.executable, "-c", load + "print(load('finetune_task', 'people')['names'][0])"],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert result.stdout == "Ada\n"

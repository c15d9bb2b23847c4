"""`import hfscale`: every recipe as a function, runs as objects, and the building blocks."""

import inspect
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from safetensors.torch import load_file

import hfscale
from hfscale.api import BUILDING_BLOCKS, call_recipe, command_words, recipe_function
from hfscale.config import arguments_of, kinds_of, read_flags
from hfscale.process import QUIET_LOGGERS, InputError
from hfscale.signatures import docstring_of
from hfscale.stopping import Stopped
from hfscale.stub import current_stub
from hfscale.training.trainer import LMTrainer
from recipes import pretrain, verify
from recipes.bias_probe import BiasProbeArguments
from recipes.generate import GenerateArguments
from recipes.pretrain import PretrainArguments

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("[!_]*.py"))
HEAVY = {"torch", "transformers", "datasets", "accelerate", "numpy", "peft", "matplotlib"}
SHAPE = {
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "hidden_size": 32,
    "max_position_embeddings": 32,
    "tokenizer": "train:300",
}
TINY = {
    **SHAPE,
    "max_steps": 2,
    "save_steps": 1,
    "per_device_train_batch_size": 4,
    "disable_tqdm": True,
    "report_to": "none",
    "use_cpu": True,
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for i in range(12):
        lines = [f"Paragraph {j} of document {i} counts to {i * j}.\n" for j in range(12)]
        (folder / f"{i:02}.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("runs") / "called"
    return hfscale.pretrain(source=[text], output_dir=folder, **TINY)


# ---- what is there


def test_import_is_light_and_lazy():
    code = (
        "import sys, inspect, hfscale\n"
        "names = dir(hfscale)\n"
        "functions = [getattr(hfscale, name) for name in ('pretrain', 'report', 'verify')]\n"
        "signatures = [inspect.signature(function) for function in functions]\n"
        "error = hfscale.InputError, hfscale.Run, hfscale.load_run\n"
        f"print(len(names), *sorted({HEAVY!r} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    expected = 1 + len(RECIPES) + len(BUILDING_BLOCKS)
    assert (result.stdout, result.stderr) == (f"{expected}\n", "")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_function(name):
    function = getattr(hfscale, name)
    assert callable(function) and name in dir(hfscale)
    parameters = inspect.signature(function).parameters
    assert "config" in parameters and "argv" not in parameters
    module = sys.modules[f"hfscale.recipes.{name}"]
    assert Path(module.__file__) == ROOT / "recipes" / f"{name}.py"
    described = recipe_function(name)
    assert described.__doc__.startswith(module.__doc__.strip()) and described.__name__ == name
    for item in fields(arguments_of(module)):
        if "help" in item.metadata:
            assert f"\n    {item.name}: " in docstring_of(module) and item.name in parameters


def test_recipes_that_train_take_upstreams_arguments():
    parameters = inspect.signature(hfscale.pretrain).parameters
    assert list(parameters)[:3] == ["config", "output_dir", "max_steps"]
    assert parameters["training"].kind == inspect.Parameter.VAR_KEYWORD
    assert parameters["packing"].default is None and str(parameters["max_steps"].default) == "..."
    assert str(parameters["packing"].annotation) == (
        "Literal['wrapped', 'bfd_split', 'none'] | None"
    )
    assert "training" not in inspect.signature(hfscale.generate).parameters
    assert next(iter(inspect.signature(hfscale.verify).parameters.values())).name == "first"


def test_the_stub_says_what_there_is():
    written = (ROOT / "hfscale" / "__init__.pyi").read_text("utf-8")
    assert written == current_stub(), "run: python -m hfscale.stub"
    assert ") -> Run: ..." in written.partition("def pretrain(")[2].partition("def ")[0]


@pytest.mark.parametrize("name", BUILDING_BLOCKS)
def test_building_blocks_are_the_librarys_own(name):
    block = getattr(hfscale, name)
    assert block.__module__ == BUILDING_BLOCKS[name] and block.__doc__


def test_every_name_is_documented():
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    for name in (*RECIPES, *BUILDING_BLOCKS):
        assert f"`{name}(" in page or f"`{name}`" in page, name


def test_rooms_with_a_recipes_name_are_both():
    from hfscale.report import page

    assert hfscale.report.page is page
    with pytest.raises(InputError, match="^runs: none given"):
        hfscale.report(runs=[])
    with pytest.raises(InputError, match="unknown name --outype; did you mean outtype"):
        hfscale.export(outype="f32")


def test_other_names_are_errors():
    with pytest.raises(AttributeError, match="module 'hfscale' has no attribute 'pretrian'"):
        _ = hfscale.pretrian


# ---- options

VALUES = [
    (GenerateArguments, {"prompts": ["The", "a b"], "do_sample": False, "temperature": 1e-05}),
    (GenerateArguments, {"prompts": ["--json", "[1]", "", "null", '"a"', "ü\n"], "seed": 3}),
    (GenerateArguments, {"prompts": ["[1, 2]"], "output_file": "--x"}),
    (GenerateArguments, {"prompts": [], "max_new_tokens": None, "stop_strings": None}),
    (PretrainArguments, {"source": ["a.txt"], "model_config": {"n_head": 2, "f": 1e-9}}),
    (PretrainArguments, {"lr_scheduler_kwargs": {"a": [1, None]}, "max_length": 32}),
    (PretrainArguments, {"source_weights": [0.5, 1], "language": None, "architecture": "-3"}),
    (BiasProbeArguments, {"templates": [{"group": "a", "fill": ["--x"]}], "pairs": None}),
]


@pytest.mark.parametrize(("cls", "options"), VALUES)
def test_options_come_through_the_command_line_as_they_are(cls, options):
    words = command_words((), options)
    assert read_flags(words, kinds_of(cls)) == options
    assert read_flags(shlex.split(shlex.join(words)), kinds_of(cls)) == options


def test_values_of_python_are_those_of_a_command(run):
    options = {
        "output_dir": PurePosixPath("runs/x"),
        "source": (run, PurePosixPath("b")),
        "max_steps": np.int64(3),
        "learning_rate": np.float32(0.5),
        "bf16": False,
    }
    assert command_words(("first", run), options) == [
        *("first", str(run.path)),
        *("--output_dir", "runs/x"),
        *("--source", str(run.path), "b"),
        *("--max_steps", "3"),
        *("--learning_rate", "0.5"),
        *("--bf16", "false"),
    ]


WRONG = [
    ("pretrain", (), {"max_step": 3}),
    ("pretrain", (), {"max_steps": "many"}),
    ("pretrain", (), {"max_steps": 2.5}),
    ("pretrain", (), {"seed": -1}),
    ("pretrain", (), {"packing": "best_fit"}),
    ("pretrain", ("tiny_cpu",), {}),
    ("pretrain", (), {"config": "tiny"}),
    ("pretrain", (), {"deepspeed": "zero2"}),
    ("finetune", (), {"source": ["nothing.txt"], "model": "runs/nothing"}),
    ("generate", (), {"prompts": ["a"], "interactive": True}),
    ("plan", (), {"gpu": "h1000"}),
    ("runs", ("nowhere",), {}),
    ("verify", (), {}),
    ("scale", (), {"sizes": ["4by4"], "tokens": [10]}),
    ("compare", (), {"vary": ["learnin_rate=1,2"]}),
]


@pytest.mark.parametrize(("name", "first", "options"), WRONG)
def test_what_is_wrong_is_said_in_the_commands_line(
    name, first, options, tmp_path, monkeypatch, capsys
):
    from hfscale.process import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hfscale.process.end_workers_with_parent", lambda: None)
    with pytest.raises(hfscale.InputError) as called:
        getattr(hfscale, name)(*first, **options)
    module = sys.modules[f"hfscale.recipes.{name}"]
    words = command_words(first, options)
    with pytest.raises(SystemExit) as end:
        run(lambda: module.main(words))
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {called.value}"
    assert not list(tmp_path.iterdir())


def test_what_no_command_can_say_is_refused(run):
    with pytest.raises(InputError, match="^command line: --model: got a Qwen, expected text, a p"):
        hfscale.generate(model=type("Qwen", (), {})(), prompts=["a"])
    with pytest.raises(InputError) as refused:
        hfscale.pretrain(config="tiny_cpu", num_processes=2, source=["a b"])
    assert str(refused.value) == (
        "num_processes: a call runs in this process; to start others, type: hfscale pretrain "
        "--config tiny_cpu --num_processes 2 --source 'a b'"
    )
    assert hfscale.plan.__name__ == "plan"  # whose num_machines is its own
    assert "num_machines" in inspect.signature(hfscale.plan).parameters


# ---- a call is the command


def test_a_call_does_what_the_command_does(run, text, tmp_path):
    words = command_words((), {"source": [text], "output_dir": tmp_path / "typed", **TINY})
    typed = pretrain.main(words)
    assert typed.path == tmp_path / "typed"
    settings = [dict(done.config) for done in (run, typed)]
    for values in settings:
        for name in ("output_dir", "logging_dir", "run_name"):
            values.pop(name, None)
    assert settings[0] == settings[1] and settings[0]["max_steps"] == 2
    assert run.record["command"] == typed.record["command"].replace(str(typed.path), str(run.path))
    weights, others = (load_file(done.path / "model.safetensors") for done in (run, typed))
    assert weights.keys() == others.keys()
    assert all(weights[name].equal(others[name]) for name in weights)
    same = {name: run.metrics[name] for name in ("eval_loss", "eval_bits_per_byte")}
    assert typed.metrics.items() >= same.items()


def test_a_dry_run_gives_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hfscale.pretrain(source=[text], dry_run=True, **TINY) is None
    assert not list(tmp_path.iterdir())


def test_recipes_give_what_they_write(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run.path.parent)
    table = hfscale.runs(".")
    assert [row["folder"] for row in table] == ["called"]
    assert table[0]["eval_loss"] == run.metrics["eval_loss"]
    assert hfscale.verify(run) is True
    scores = hfscale.score(model=run, output_dir=tmp_path / "score", max_length=32)
    assert scores == json.loads((tmp_path / "score" / "scores.json").read_text())
    plan = hfscale.plan(
        recipe="pretrain", gpu="l4", vocab_size=300, **SHAPE | {"tokenizer": "char"}
    )
    assert plan["recommended"] in plan["launches"]
    assert plan["command"].startswith("hfscale pretrain ")
    page = hfscale.report(runs=[run], output_file=tmp_path / "page.html")
    assert page.html == (tmp_path / "page.html").read_text("utf-8")


def test_a_damaged_folder_is_false(run, tmp_path):
    import shutil

    copy = Path(shutil.copytree(run.path, tmp_path / "copy"))
    (copy / "config.json").write_text("{}")
    assert hfscale.verify(str(copy)) is False and verify.main([str(copy)]) is False


# ---- a guest in someone's process


def state_of_the_process():
    upstream = sys.modules["transformers.utils.logging"]
    loggers = [logging.getLogger(name) for name in (None, "DeepSpeed", "datasets", "lm_eval")]
    return {
        "environment": (id(os.environ), dict(os.environ)),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "words": list(sys.argv),
        "loggers": [(one.level, list(one.filters), list(one.handlers)) for one in loggers],
        "filters": {
            name: list(one.filters)
            for name, one in logging.root.manager.loggerDict.items()
            if getattr(one, "filters", None)
        },
        "verbosity": (upstream.get_verbosity(), upstream.is_progress_bar_enabled()),
        "streams": (sys.stdout, sys.stderr, sys.excepthook),
        "hidden": [name for name, module in sys.modules.items() if module is None],
        "folder": os.getcwd(),
        "path": list(sys.path),
    }


def test_a_call_leaves_nothing_behind(run, text, tmp_path, monkeypatch):
    import warnings

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("hfscale.process.hub_reachable", lambda *_: False)
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    for name in QUIET_LOGGERS:  # an earlier test's command may have left some
        monkeypatch.setattr(logging.getLogger(name), "filters", [])
    before, filters = state_of_the_process(), list(warnings.filters)
    hfscale.pretrain(source=[text], output_dir=tmp_path / "a", **TINY)
    hfscale.generate(model=tmp_path / "a", prompts="The", max_new_tokens=2)
    with pytest.raises(InputError):
        hfscale.pretrain(source=[tmp_path / "nothing"], output_dir=tmp_path / "b", **TINY)
    after = state_of_the_process()
    assert {name: value for name, value in after.items() if value != before[name]} == {}
    assert list(warnings.filters) == filters


def raising(number):
    step = LMTrainer.training_step

    def training_step(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        os.kill(os.getpid(), number)
        return loss

    return training_step


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_an_exception_after_the_step_is_saved(
    number, text, tmp_path, monkeypatch, capsys
):
    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    options = {"source": [text], "output_dir": tmp_path / "run", **TINY, "save_steps": 100}
    with monkeypatch.context() as patch:
        patch.setattr(LMTrainer, "training_step", raising(number))
        with pytest.raises(KeyboardInterrupt) as stopped:
            hfscale.pretrain(**options)
    assert stopped.value.number == number and isinstance(stopped.value, Stopped)
    assert "after step 1; a checkpoint is saved, --resume auto goes on" in capsys.readouterr().err
    assert handlers == {one: signal.getsignal(one) for one in handlers}
    assert hfscale.pretrain(**options, resume="auto").record["train"]["steps"] == 2


@pytest.mark.parametrize(
    ("status", "expected"), [(1, RuntimeError), (101, RuntimeError), (0, None)]
)
def test_no_call_ends_the_process(status, expected, monkeypatch):
    def main(words):
        raise SystemExit(status)

    monkeypatch.setattr("hfscale.recipes.runs.main", main)
    if expected is None:
        assert call_recipe("runs") is None
    else:
        with pytest.raises(expected, match=f"^runs ended with status {status}; it said why"):
            call_recipe("runs")


# ---- Run


def test_a_run_is_loaded_and_shown(run):
    loaded = hfscale.load_run(str(run.path))
    assert isinstance(loaded, hfscale.Run) and loaded.record == run.record
    assert loaded.metrics["eval_loss"] == run.record["metrics"]["eval_loss"]
    assert loaded.config["hidden_size"] == 32 and len(loaded.samples) == 3
    assert os.fspath(loaded) == str(run.path)
    assert repr(loaded) == (
        f"Run({str(run.path)!r}: pretrain, GPT2LMHeadModel of "
        f"{run.record['model']['parameters']:,} parameters, "
        f"eval_loss {run.metrics['eval_loss']:.4g})"
    )
    assert "<th>eval_loss</th>" in loaded._repr_html_()


def test_names_in_a_runs_table_are_text(run):
    named = hfscale.Run(Path("a<b>"), run.record | {"recipe": "<script>"})
    assert "<b>" not in named._repr_html_() and "<script>" not in named._repr_html_()


def test_model_and_tokenizer_are_loaded_once(run):
    loaded = hfscale.load_run(run)
    assert loaded.model is loaded.model and loaded.tokenizer is loaded.tokenizer
    assert loaded.model.config.n_embd == 32 and not loaded.model.training
    assert len(loaded.tokenizer) == loaded.model.config.vocab_size


def test_a_run_generates_as_the_recipe_does(run, capsys):
    asked = {"max_new_tokens": 6, "num_return_sequences": 2, "seed": 5}
    texts = run.generate(["Paragraph 1", "--x"], **asked)
    assert len(texts) == 4 and capsys.readouterr().out == ""
    records = hfscale.generate(model=run, prompts=["Paragraph 1", "--x"], json=True, **asked)
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    assert records == texts == [text for line in lines for text in line["completions"]]
    assert run.generate("Paragraph 1", max_new_tokens=2, do_sample=False) == run.generate(
        ["Paragraph 1"], max_new_tokens=2, do_sample=False
    )
    with pytest.raises(InputError, match="unknown name --max_tokens"):
        run.generate("a", max_tokens=3)


def test_a_runs_page_is_shown_in_a_frame_of_its_own(run, tmp_path):
    from html import unescape

    page = run.report()
    hfscale.report(runs=[str(run.path)], output_file=tmp_path / "typed.html")
    assert page.html == (tmp_path / "typed.html").read_text("utf-8")
    frame = page._repr_html_()
    assert frame.startswith('<iframe srcdoc="') and frame.count("<") == 2
    assert unescape(frame.partition('srcdoc="')[2].partition('"')[0]) == page.html
    assert page.save(tmp_path / "saved.html").read_text("utf-8") == page.html
    with pytest.raises(InputError, match="^also: "):
        run.report(also=[tmp_path])


@pytest.mark.parametrize("folder", ["nowhere", "empty", "other"])
def test_a_folder_that_is_no_run_is_one_line(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text('{"recipe": "pretrain"}')
    with pytest.raises(InputError) as refused:
        hfscale.load_run(tmp_path / folder)
    line = str(refused.value)
    assert line.startswith(f"load_run: {tmp_path / folder} has no readable run.json")
    assert line.endswith("name a folder of a finished run") and "\n" not in line


# ---- building blocks


def test_the_blocks_make_a_line_from_text_to_a_comparison(text, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    documents = hfscale.load_documents(str(text))
    cleaned, stages = hfscale.clean_documents(
        documents, min_words=5, near_duplicates=False, quality=False
    )
    assert [stage["documents_out"] for stage in stages][-1] == len(cleaned) == 12
    parts = hfscale.split_documents(cleaned, split_by="document", validation_fraction=0.2, seed=0)
    tokenizer = hfscale.train_bpe(parts["train"], 300)
    rows = hfscale.pack_documents(parts["train"], tokenizer, 32)
    model = hfscale.new_model(tokenizer, n_layer=1, n_head=2, n_embd=32, n_positions=32)
    held_out = parts["validation"]["text"][:]
    before = hfscale.score_documents(model, tokenizer, held_out)
    trainer = hfscale.LMTrainer(
        model=model,
        args=hfscale.training_arguments(
            {
                "output_dir": str(tmp_path),
                "max_steps": 20,
                "learning_rate": 1e-2,
                "report_to": "none",
                "disable_tqdm": True,
                "save_strategy": "no",
                "eval_strategy": "no",
                "use_cpu": True,
            },
            width=32,
        ),
        train_dataset=rows,
        data_collator=hfscale.collate_rows,
        processing_class=tokenizer,
    )
    trainer.train()
    after = hfscale.score_documents(model, tokenizer, held_out)
    metrics, _ = hfscale.perplexity_metrics(after)
    result = hfscale.compare_paired(
        before.sums, after.sums, values=lambda sums: {"loss": sums[..., 0] / sums[..., 1]}
    )
    assert result["loss"]["difference"] < -1
    assert metrics["loss"] == pytest.approx(after.sums[:, 0].sum() / after.sums[:, 1].sum())
    model.set_attn_implementation("eager")
    ids = tokenizer("Paragraph 1 of", return_tensors="pt").input_ids
    weights = hfscale.attention_weights(model, ids)
    assert weights.shape == (1, 1, 2, ids.shape[1], ids.shape[1])
    [[answer]] = hfscale.generate_texts(model, tokenizer, ["Paragraph"], max_new_tokens=3)
    assert isinstance(answer, str)


def test_documents_are_cleaned_as_the_recipe_cleans_them(tmp_path):
    from datasets import Dataset

    texts = [f"Paragraph {i} of the text that is cleaned, which someone wrote" for i in range(3)]
    texts += [texts[0], f"{texts[1]} to a@b.org", "  "]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    asked = {"quality": False, "near_duplicates": False}
    card = hfscale.prepare_data(
        source=[tmp_path / "texts.jsonl"], output_dir=tmp_path / "data", **asked
    )
    cleaned, stages = hfscale.clean_documents(Dataset.from_dict({"text": texts[:5]}), **asked)
    assert cleaned.column_names == ["text"] and len(cleaned) == 4
    assert "a@b.org" not in "".join(cleaned["text"])
    written = {stage["stage"]: stage for stage in card["stages"]}
    assert {stage["stage"] for stage in stages} >= {"repair", "exact duplicates", "personal data"}
    assert all(stage.items() >= written[stage["stage"]].items() for stage in stages)
    with pytest.raises(InputError, match="no document is left after the stage 'quality'"):
        hfscale.clean_documents(Dataset.from_dict({"text": ["short"]}))
    with pytest.raises(TypeError, match="min_word"):
        hfscale.clean_documents(Dataset.from_dict({"text": ["short"]}), min_word=3)

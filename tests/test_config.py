"""YAML and flags become one argument object, strictly, in one line of complaint and without heavy
imports.
"""

import dataclasses
import enum
import os
import socket
import subprocess
import sys
import textwrap
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from hfscale import config, process
from hfscale.arguments import RunArguments, ShapeArguments
from hfscale.config import parse_args
from hfscale.folders import write_atomically
from hfscale.options import convert, training_defaults, training_types
from hfscale.process import InputError, run
from hfscale.report.settings import COMPUTED

ROOT = Path(__file__).parents[1]


@dataclass
class OwnArguments:
    name: str = field(default="model", metadata={"help": "a name"})
    maybe: str | None = None
    count: int = 1
    rate: float = 0.5
    steps: int | float = 10
    flag: bool = False
    choice: Literal["red", "green", "blue"] = "red"
    names: list[str] = field(default_factory=list)
    one_or_more: list[str] | str | None = None
    numbers: list[int] | None = None
    settings: dict | None = None
    loose: dict | str | None = None
    colours: list[Literal["red", "green"]] = field(default_factory=list)


@dataclass
class TrainArguments(OwnArguments, RunArguments):
    """Also takes what TrainingArguments takes."""


@dataclass
class LimitedArguments(RunArguments):
    seed: int = 0
    share: float = field(default=0.5, metadata={"min": 0, "max": 1})
    sizes: list[int] | None = field(default=None, metadata={"min": 2})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def parse(folder):
    """parse("--flag", ..., yaml="text of c.yaml"): the arguments of a recipe whose script lies in
    the folder.
    """

    def parse(*words, cls=OwnArguments, yaml=None):
        if yaml is not None:
            Path("c.yaml").write_text(yaml, "utf-8")
            words = ("--config", "c.yaml", *words)
        return parse_args(cls, list(words), recipe=str(folder / "toy.py"))

    return parse


def complaint(parse, *words, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        parse(*words, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- what is given arrives


def test_nothing_given_leaves_the_defaults(parse):
    assert parse() == OwnArguments()
    assert parse(cls=TrainArguments).training == {}


def test_flags_win_over_files_and_later_files_over_earlier_ones(parse):
    Path("a.yaml").write_text("count: 2\nname: first\nrate: 0.25\n")
    Path("b.yaml").write_text("count: 3\nname: second\n")
    for words in (
        ["--config", "a.yaml", "b.yaml"],
        ["--config", "a.yaml", "--config", "b.yaml"],
        ["--config=a.yaml", "--config=b.yaml"],
    ):
        args = parse("--name", "third", *words)  # a flag wins wherever it stands
        assert (args.count, args.name, args.rate) == (3, "third", 0.25)
    assert parse("--config", "b.yaml", "a.yaml").count == 2
    assert parse("--count", "4", "--count", "5").count == 5


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--name", "x y"], {"name": "x y"}),
        (["--name=a=b"], {"name": "a=b"}),
        (["--name="], {"name": ""}),
        (["--name", "12"], {"name": "12"}),  # a string stays one, whatever it looks like
        (["--name", "1e-3"], {"name": "1e-3"}),
        (["--name", "true"], {"name": "true"}),
        (["--name", "null"], {"name": "null"}),
        (["--maybe", "null"], {"maybe": None}),
        (["--maybe", "007"], {"maybe": "007"}),
        (["--count", "-3"], {"count": -3}),
        (["--rate", "1e-3"], {"rate": 0.001}),
        (["--rate", "2"], {"rate": 2.0}),
        (["--rate", "-.5"], {"rate": -0.5}),
        (["--steps", "3"], {"steps": 3}),
        (["--steps", "0.3"], {"steps": 0.3}),
        (["--flag"], {"flag": True}),
        (["--names", "[]"], {"names": []}),
        (["--names", '["a", "b c"]'], {"names": ["a", "b c"]}),
        (["--names", "[PAD]"], {"names": ["[PAD]"]}),
        (["--flag", "--count", "2"], {"flag": True, "count": 2}),
        (["--flag", "False"], {"flag": False}),
        (["--choice", "blue"], {"choice": "blue"}),
        (["--names", "a"], {"names": ["a"]}),
        (["--names", "a", "2", "null"], {"names": ["a", "2", "null"]}),
        (["--names", "a", "--names", "b"], {"names": ["a", "b"]}),
        (["--one_or_more", "a"], {"one_or_more": "a"}),
        (["--one_or_more", "a", "b"], {"one_or_more": ["a", "b"]}),
        (["--numbers", "1", "2"], {"numbers": [1, 2]}),
        (["--settings", '{"a": 0.5, "b": [1]}'], {"settings": {"a": 0.5, "b": [1]}}),
        (
            ["--settings", "{a: 0.5, b: [1, x], c: {d: null}}"],
            {"settings": {"a": 0.5, "b": [1, "x"], "c": {"d": None}}},
        ),
        (["--settings", "{a: 1e-3, b: '1e-3'}"], {"settings": {"a": 0.001, "b": "1e-3"}}),
        (
            ["--settings", "{a:", "{b:", "1}}"],
            {"settings": {"a": {"b": 1}}},
        ),  # without quotes in the shell
        (["--settings", "a: 1"], {"settings": {"a": 1}}),
        (
            [
                "--settings",
                "a=1",
                "b=[x, 2e-3]",
                "c=x=y",
                "d=",
                "--settings",
                "a=3",
                "--settings=e=1",
            ],
            {"settings": {"a": 3, "b": ["x", 0.002], "c": "x=y", "d": None, "e": 1}},
        ),
        (["--settings", "{}"], {"settings": {}}),
        (["--settings", "null"], {"settings": None}),
        (["--settings", "null", "--settings", "a=1"], {"settings": {"a": 1}}),
        (["--numbers", "1", "--numbers", "null", "--numbers", "2"], {"numbers": [2]}),
        (["--loose", "{a: 1}"], {"loose": {"a": 1}}),
        (["--loose", "file.json"], {"loose": "file.json"}),
    ],
)
def test_flags(parse, words, expected):
    args = parse(*words)
    assert args == OwnArguments(**expected)
    assert {name: type(value) for name, value in vars(args).items() if name in expected} == {
        name: type(value) for name, value in expected.items()
    }  # 2 == 2.0 == True


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("name: text\ncount: 3\nflag: true\n", {"name": "text", "count": 3, "flag": True}),
        ("rate: 1e-3", {"rate": 0.001}),  # YAML itself reads this as text
        ("rate: 1", {"rate": 1.0}),
        ("steps: 1", {"steps": 1}),
        ("maybe: null", {"maybe": None}),
        ("maybe:", {"maybe": None}),
        ("name: '12'", {"name": "12"}),
        ("choice: green  # a comment", {"choice": "green"}),
        ("names: [a, b]", {"names": ["a", "b"]}),
        ("names:\n- a\n- b", {"names": ["a", "b"]}),
        ("names: a", {"names": ["a"]}),
        ("numbers: 3", {"numbers": [3]}),
        ("numbers: null", {"numbers": None}),
        ("colours: red", {"colours": ["red"]}),
        ("one_or_more: a", {"one_or_more": "a"}),
        (
            "settings: {a: 1e-3, b: {c: [2E5]}, d: '1e-3'}",
            {"settings": {"a": 0.001, "b": {"c": [2e5]}, "d": "1e-3"}},
        ),
        ("settings: {a: {b: 1}}", {"settings": {"a": {"b": 1}}}),
        ("name: grüße", {"name": "grüße"}),
    ],
)
def test_yaml(parse, yaml, expected):
    args = parse(yaml=yaml)
    assert args == OwnArguments(**expected)
    assert {name: type(getattr(args, name)) for name in expected} == {
        n: type(v) for n, v in expected.items()
    }


def test_a_list_given_by_flags_replaces_the_one_of_the_file(parse):
    assert parse("--names", "c", yaml="names: [a, b]").names == ["c"]


def test_names_of_training_arguments_arrive_apart_and_only_if_given(parse):
    args = parse(
        "--learning_rate",
        "1e-3",
        "--count",
        "2",
        "--report_to",
        "none",
        cls=TrainArguments,
        yaml="max_steps: 3\nlr_scheduler_kwargs: {min_lr: 0.1}\nwarmup_steps: 0.1\nname: mine\n",
    )
    assert args.training == {
        "learning_rate": 0.001,
        "report_to": "none",
        "max_steps": 3,
        "warmup_steps": 0.1,
        "lr_scheduler_kwargs": {"min_lr": 0.1},
    }
    assert (args.count, args.name) == (2, "mine")


def test_extends_reads_the_other_file_first(parse):
    Path("base.yaml").write_text("count: 1\nrate: 0.1\nname: base\n")
    Path("mid.yaml").write_text("extends: base.yaml\ncount: 2\nrate: 0.2\n")
    args = parse(yaml="count: 3\nextends: mid.yaml\n")  # wherever the line stands
    assert (args.count, args.rate, args.name) == (3, 0.2, "base")


def test_shipped_configs_go_by_name(parse, folder):
    (folder / "configs" / "toy").mkdir(parents=True)
    (folder / "configs" / "toy" / "small.yaml").write_text("count: 7\n")
    assert parse("--config", "small").count == parse("--config", "small.yaml").count == 7
    Path("small").write_text("count: 8\n")
    assert parse("--config", "small").count == 8  # the user's own file goes first


def test_a_mapping_that_holds_itself_is_one_line(parse):
    found = complaint(parse, yaml="settings: &s {a: 1e-3, again: *s}")
    assert found == "c.yaml:1: an alias (*) is not read; write the value out"


# ---- one task file for training and scoring

TASK = """
task_source: [rows.jsonl]
prompt: "{q}"
target: "{a}"
metrics: exact_match
"""
TRAINING = """
model: new
tokenizer: train:300
output_dir: runs/add
max_steps: 5
num_hidden_layers: 1
seed: 3
"""
SCORING = """
batch_size: 4
do_sample: true
pass_at: 1
"""


def task_args(name: str, yaml: str, *words: str):
    """What a shipped recipe makes of a task file."""
    script = ROOT / "recipes" / f"{name}.py"
    Path("task.yaml").write_text(yaml)
    return parse_args(
        config.arguments_class(script), ["--config", "task.yaml", *words], recipe=str(script)
    )


def test_score_takes_the_task_of_a_file_that_trains(folder):
    args = task_args("score", TASK + TRAINING)
    assert (args.task_source, args.metrics, args.seed) == (["rows.jsonl"], ["exact_match"], 3)
    assert (args.model, args.output_dir, args.tokenizer) == (["runs/add"], "runs/score", None)
    # How long a training row is says nothing about how text is read to be scored.
    assert task_args("score", TASK + TRAINING + "max_length: 64\n").max_length is None
    assert task_args("score", TASK + TRAINING, "--model", "runs/b", "gpt2").model == [
        "runs/b",
        "gpt2",
    ]
    assert task_args("score", TASK + "model: new\noutput_dir: runs/c\n").model == ["runs/c"]


def test_a_file_that_lists_models_may_extend_one_that_trains(folder):
    Path("train.yaml").write_text(TASK + TRAINING)
    args = task_args(
        "score", "extends: train.yaml\nmodel: [runs/a, runs/b]\noutput_dir: runs/compared\n"
    )
    assert (args.model, args.output_dir, args.tokenizer) == (
        ["runs/a", "runs/b"],
        "runs/compared",
        None,
    )
    args = task_args("score", "extends: train.yaml\noutput_dir: runs/longer\ntrain_examples: 9\n")
    assert (args.model, args.output_dir) == (
        ["runs/longer"],
        "runs/score",
    )  # a variant of the training


def test_score_takes_a_file_of_its_own_as_it_is(folder):
    args = task_args("score", TASK + SCORING + "model: gpt2\noutput_dir: scores\n")
    assert (args.model, args.output_dir, args.batch_size, args.pass_at) == (
        ["gpt2"],
        "scores",
        4,
        [1],
    )


def test_finetune_task_takes_a_file_that_also_says_how_to_score(folder):
    args = task_args("finetune_task", TASK + TRAINING + SCORING)
    assert (args.model, args.metrics, args.num_hidden_layers) == ("new", ["exact_match"], 1)
    assert args.training == {"max_steps": 5, "output_dir": "runs/add", "seed": 3}


@pytest.mark.parametrize("name", ["score", "finetune_task"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("max_stepps: 5", "task.yaml:6: unknown name max_stepps; did you mean max_steps?"),
        ("batch_sise: 5", "task.yaml:6: unknown name batch_sise; did you mean batch_size?"),
        ("max_steps: x", "task.yaml:6: max_steps: got 'x', expected int"),
        ("batch_size: x", "task.yaml:6: batch_size: got 'x', expected int"),
    ],
)
def test_names_of_the_other_recipe_are_checked_too(folder, name, line, message):
    with pytest.raises(InputError) as caught:
        task_args(name, TASK + line + "\n")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "flag"), [("score", "--max_steps"), ("finetune_task", "--batch_size")]
)
def test_flags_are_the_recipes_own(folder, name, flag):
    with pytest.raises(InputError, match=f"command line: unknown name {flag}"):
        task_args(name, TASK, flag, "1")


def test_recipes_without_tasks_take_no_other_names(folder):
    with pytest.raises(InputError, match="unknown name batch_size"):
        task_args("pretrain", "batch_size: 3\n")


# ---- what is wrong is named, with its place


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--countt", "1"], "command line: unknown name --countt; did you mean count?"),
        (["--zzz", "1"], "command line: unknown name --zzz; --help lists the names"),
        (["--confg", "c.yaml"], "command line: unknown name --confg; did you mean config?"),
        (["--config"], "--config : no such file; shipped with toy: none"),
        (["--training", "1"], "command line: unknown name --training; --help lists the names"),
        (
            ["word"],
            "command line: 'word' stands alone; arguments are given as --name value (see --help)",
        ),
        (["--count", "x"], "command line: --count: got 'x', expected int"),
        (["--count", "1.5"], "command line: --count: got '1.5', expected int"),
        (["--count", "true"], "command line: --count: got 'true', expected int"),
        (["--count"], "command line: --count: got '', expected int"),
        (["--count", "1", "2"], "command line: --count: got '1 2', expected int"),
        (["--rate", "nan"], "command line: --rate: got 'nan', expected float"),
        (["--rate", "fast"], "command line: --rate: got 'fast', expected float"),
        (["--flag", "yes"], "command line: --flag: got 'yes', expected bool"),
        (["--flag", "1"], "command line: --flag: got '1', expected bool"),
        (["--name"], "command line: --name: got '', expected str"),
        (
            ["--choice", "gren"],
            "command line: --choice: got 'gren', expected one of red, green, blue; did you mean "
            "green?",
        ),
        (
            ["--choice", "one"],
            "command line: --choice: got 'one', expected one of red, green, blue",
        ),
        (["--numbers", "1", "b"], "command line: --numbers: got '1 b', expected int"),
        (
            ["--settings", "a"],
            "command line: --settings: got 'a', expected {name: value, ...} or null",
        ),
        (
            ["--settings", "a=1", "b"],
            "command line: --settings: got 'a=1 b', expected {name: value, ...} or null",
        ),
        (
            ["--settings", "a=1", "a=2"],
            "command line: --settings: got 'a=1 a=2', a is given twice; give it once",
        ),
        (
            ["--settings", "a=[1"],
            "command line: --settings: got 'a=[1', the value of a is not YAML; quote it",
        ),
        (["--config", "none.yaml"], "--config none.yaml: no such file; shipped with toy: none"),
    ],
)
def test_wrong_flags(parse, words, message):
    assert complaint(parse, *words) == message


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("name: a\n\ncuont: 3\n", "c.yaml:3: unknown name cuont; did you mean count?"),
        ("count: 3.0\n", "c.yaml:1: count: got 3.0, expected int"),
        ("count: '3'\n", "c.yaml:1: count: got '3', expected int"),
        ("count: true\n", "c.yaml:1: count: got True, expected int"),
        ("rate: true\n", "c.yaml:1: rate: got True, expected float"),
        ("rate: .nan\n", "c.yaml:1: rate: got nan, expected float"),
        ("flag: 1\n", "c.yaml:1: flag: got 1, expected bool"),
        ("flag: 'true'\n", "c.yaml:1: flag: got 'true', expected bool"),
        ("name: 12\n", "c.yaml:1: name: got 12, expected str"),
        ("name: null\n", "c.yaml:1: name: got None, expected str"),
        ("names: 1\n", "c.yaml:1: names: got 1, expected list of str"),
        ("names: null\n", "c.yaml:1: names: got None, expected list of str"),
        ("names: {a: 1}\n", "c.yaml:1: names: got {'a': 1}, expected list of str"),
        ("numbers: true\n", "c.yaml:1: numbers: got True, expected list of int or null"),
        (
            "colours: gren\n",
            "c.yaml:1: colours: got 'gren', expected list of one of red, green; did you mean "
            "green?",
        ),
        ("names: [a, 1]\n", "c.yaml:1: names: got ['a', 1], expected str"),
        (
            "choice: Blue\n",
            "c.yaml:1: choice: got 'Blue', expected one of red, green, blue; did you mean blue?",
        ),
        ("settings: [1]\n", "c.yaml:1: settings: got [1], expected {name: value, ...} or null"),
        ("count: 1\nrate: 1\ncount: 2\n", "c.yaml:3: count is set twice; keep one of the lines"),
        ("1: 2\n", "c.yaml:1: unknown name 1; --help lists the names"),
        ("[a]: 2\n", "c.yaml:1: unknown name ['a']; --help lists the names"),
        ("config: x\n", "c.yaml:1: unknown name config; --help lists the names"),
        ("", "c.yaml: holds no 'name: value' lines"),
        ("# only a comment\n", "c.yaml: holds no 'name: value' lines"),
        ("- count\n", "c.yaml: holds no 'name: value' lines"),
        ("count\n", "c.yaml: holds no 'name: value' lines"),
        ("extends: none.yaml\n", "c.yaml:1: extends: 'none.yaml' is not another file in ."),
        ("count: 1\nextends: c.yaml\n", "c.yaml:2: extends: 'c.yaml' is not another file in ."),
        ("extends: [c.yaml]\n", "c.yaml:1: extends: 'c.yaml' is not another file in ."),
    ],
)
def test_wrong_yaml(parse, yaml, message):
    assert complaint(parse, yaml=yaml) == message


@pytest.mark.parametrize(
    "yaml",
    [
        "a: [\n",
        "a: 1\n---\nb: 2\n",
        "\tcount: 1\n",
        "name: !!python/object:os.system x\n",
        "name: \x00\n",
    ],
)
def test_broken_yaml_is_one_line(parse, yaml):
    assert complaint(parse, yaml=yaml).startswith("c.yaml: not readable as YAML: ")


def test_yaml_in_another_encoding(parse, folder):
    (folder / "latin.yaml").write_bytes("name: grüße\n".encode("latin-1"))
    assert complaint(parse, "--config", "latin.yaml").startswith(
        "latin.yaml: not readable as YAML: 'utf-8' codec"
    )


def test_files_that_extend_each_other(parse):
    Path("d.yaml").write_text("count: 1\nextends: c.yaml\n")
    assert (
        complaint(parse, yaml="extends: d.yaml\n")
        == "d.yaml:2: extends: 'c.yaml' is not another file in ."
    )


def test_of_several_extended_files_the_later_one_wins(parse):
    Path("a.yaml").write_text("count: 1\nrate: 0.1\nname: a\n")
    Path("b.yaml").write_text("rate: 0.2\nname: b\n")
    args = parse(yaml="name: c\nextends: [a.yaml, b.yaml]\n")
    assert (args.count, args.rate, args.name) == (1, 0.2, "c")


def test_place_is_that_of_the_extended_file(parse):
    Path("d.yaml").write_text("\ncuont: 1\n")
    assert complaint(parse, yaml="extends: d.yaml\n").startswith("d.yaml:2: unknown name cuont")


@pytest.mark.parametrize("name", config.REFUSED)
def test_names_without_effect_or_unsafe_are_refused(parse, name):
    expected = f"is not taken: {config.REFUSED[name]}"
    assert (
        complaint(parse, f"--{name}", "x", cls=TrainArguments)
        == f"command line: --{name} {expected}"
    )
    assert (
        complaint(parse, yaml=f"{name}: x\n", cls=TrainArguments) == f"c.yaml:1: {name} {expected}"
    )
    assert "unknown name" in complaint(
        parse, f"--{name}", "x"
    )  # a recipe that does not train has no such name


@pytest.mark.parametrize("name", config.RENAMED)
def test_old_names_lead_to_the_new_ones(parse, name):
    @dataclass
    class Every(ShapeArguments, RunArguments):
        source: str = ""
        max_length: int = 0
        validation_source: str = ""
        model: str = ""
        dtype: str = ""
        lora_r: int = 0
        lora_target_modules: str = ""
        truncation_side: str = ""
        baseline_input: str = ""
        label: str = ""
        test_code: str = ""
        test_program: str = ""

    found = complaint(parse, f"--{name}", "1", cls=Every)
    assert found == f"command line: unknown name --{name}; did you mean {config.RENAMED[name]}?"
    hint = complaint(parse, f"--{name}", "1").partition("; ")[2]
    assert config.RENAMED[name] not in hint  # the recipe does not have it


def test_training_names_are_checked_too(parse):
    assert complaint(parse, "--learning_rat", "1", cls=TrainArguments).endswith(
        "did you mean learning_rate?"
    )
    assert complaint(parse, "--eval_strategy", "step", cls=TrainArguments) == (
        "command line: --eval_strategy: got 'step', expected one of no, steps, epoch; did you mean "
        "steps?"
    )
    assert "expected int" in complaint(parse, yaml="max_steps: 1e3\n", cls=TrainArguments)
    assert "did you mean adamw_torch?" in complaint(
        parse, yaml="optim: adamw_torh\n", cls=TrainArguments
    )


# ---- the list of TrainingArguments' names is read from source: hold it against the class itself


def test_training_types_agree_with_the_class():
    import transformers

    hints = typing.get_type_hints(transformers.TrainingArguments)
    kinds = training_types()
    fields = {f.name: f for f in dataclasses.fields(transformers.TrainingArguments) if f.init}
    assert list(kinds) == list(fields)
    for name, kind in kinds.items():
        default = fields[name].default
        enums = [
            e
            for e in get_args(hints[name]) or [hints[name]]
            if isinstance(e, type) and issubclass(e, enum.Enum)
        ]
        choices = [
            v
            for member in get_args(kind) or []
            if get_origin(member) is Literal
            for v in get_args(member)
        ]
        choices += get_args(kind) if get_origin(kind) is Literal else []
        for enumeration in enums:
            assert set(choices) == {member.value for member in enumeration}, name
            assert str not in get_args(kind), name
        if not enums and name not in ("debug", "parallelism_config"):
            assert kind == hints[name], name
        if default is not dataclasses.MISSING:  # upstream's own default passes the check
            value = default.value if isinstance(default, enum.Enum) else default
            assert value is None or convert(value, kind) == value, name


def test_training_defaults_are_those_of_the_class():
    import transformers

    of_class = {
        item.name: getattr(item.default, "value", item.default)
        for item in dataclasses.fields(transformers.TrainingArguments)
        if item.init and item.default is not dataclasses.MISSING
    }
    assert training_defaults() | COMPUTED == of_class


def test_every_training_default_can_be_written_down():
    """TrainingArguments takes back what passes the check, so no name is accepted that the class
    would refuse.
    """
    import transformers

    kinds = training_types()
    defaults = {
        f.name: f.default for f in dataclasses.fields(transformers.TrainingArguments) if f.init
    }
    given = {
        name: convert(value.value if isinstance(value, enum.Enum) else value, kinds[name])
        for name, value in defaults.items()
        if value is not None and value is not dataclasses.MISSING
    }
    args = transformers.TrainingArguments(**given | {"output_dir": "unused"})
    assert args.learning_rate == given["learning_rate"]


# ---- light, offline, atomic


@pytest.mark.parametrize("recipe", sorted(p.stem for p in (ROOT / "recipes").glob("[!_]*.py")))
def test_help_is_quick_and_imports_nothing_heavy(recipe):
    code = textwrap.dedent("""
        import runpy, sys
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            assert not end.code, end.code
        heavy = {"torch", "transformers", "datasets", "accelerate", "numpy"} & set(sys.modules)
        assert not heavy, heavy
    """)
    script = str(ROOT / "recipes" / f"{recipe}.py")
    start = os.times()
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv = {[script, '--help']!r}\n{code}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    used = os.times()
    assert result.returncode == 0, result.stderr
    # Processor time of the child: the wall clock would also measure who else uses this machine.
    assert (
        used.children_user + used.children_system - start.children_user - start.children_system < 2
    )
    assert result.stdout.startswith(f"usage: hfscale {recipe} [--config FILE.yaml ...]")
    if recipe == "pretrain":
        assert result.stdout.index("--num_hidden_layers <int or null>") < result.stdout.index(
            "lr_scheduler_type"
        )
        assert "hub_token" not in result.stdout


def test_help_stops_before_anything_is_checked(parse, folder, capsys):
    (folder / "toy.py").write_text('"""A toy."""')
    with pytest.raises(SystemExit) as caught:
        parse("--count", "wrong", "--help")
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "usage: hfscale toy [--config FILE.yaml ...] [--name value ...]\n\nA toy."
    )
    assert "--name <str>  default: model\n      a name" in out
    assert "--choice <one of red, green, blue>  default: red" in out


def test_input_errors_end_with_status_2_and_one_line(capsys, monkeypatch):
    def fail():
        raise InputError("place: what is wrong")

    with pytest.raises(SystemExit) as caught:
        run(fail)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: place: what is wrong\n"
    monkeypatch.setenv("RANK", "1")  # the main rank has said it
    with pytest.raises(SystemExit) as caught:
        run(fail)
    assert caught.value.code == 2 and capsys.readouterr().err == ""
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_atomically(path, "old – ö")
    assert path.read_bytes() == "old – ö".encode()
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text("utf-8") == "old – ö"
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")


@pytest.fixture
def no_switches(monkeypatch):
    for name in OFFLINE:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_an_unreachable_hub_switches_to_offline(no_switches, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        process.go_offline_if_unreachable()
    assert [os.environ.get(name) for name in OFFLINE] == ["1"] * 3


def test_a_reachable_hub_changes_nothing(no_switches, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert process.hub_reachable()
        process.go_offline_if_unreachable()
    assert [os.environ.get(name) for name in OFFLINE] == [None] * 3


def test_what_the_user_set_stays(no_switches, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    process.go_offline_if_unreachable()
    assert [os.environ.get(name) for name in OFFLINE] == ["0", None, None]
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "0")
    process.go_offline_if_unreachable()
    assert [os.environ.get(name) for name in OFFLINE] == ["yes", "0", "1"]


# ---- limits


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--seed 4294967296", "command line: --seed: got '4294967296', expected 0 to 4294967295"),
        ("--seed -1", "command line: --seed: got '-1', expected 0 to 4294967295"),
        (
            "--data_seed 99999999999",
            "command line: --data_seed: got '99999999999', expected 0 to 4294967295",
        ),
        ("--data_seed 1e20", "command line: --data_seed: got '1e20', expected int or null"),
        ("--share 1.5", "command line: --share: got '1.5', expected 0 to 1"),
        ("--share inf", "command line: --share: got 'inf', expected 0 to 1"),
        ("--sizes 3 1", "command line: --sizes: got '3 1', expected at least 2"),
    ],
)
def test_numbers_beyond_their_limits(parse, words, says):
    with pytest.raises(InputError) as error:
        parse(*words.split(), cls=LimitedArguments)
    assert str(error.value) == says


@pytest.mark.parametrize(
    "words", [["--names"], ["--numbers"], ["--names", "a", "--numbers"], ["--name"]]
)
def test_a_flag_without_its_value(parse, words):
    with pytest.raises(InputError, match=f"^command line: {words[-1]}: got '', expected "):
        parse(*words)


def test_limits_hold_in_files_and_include_their_ends(parse):
    with pytest.raises(InputError, match=r"^c\.yaml:2: seed: got -1, expected 0 to 4294967295$"):
        parse(cls=LimitedArguments, yaml="share: 1\nseed: -1\n")
    args = parse(
        "--sizes",
        "2",
        "--seed",
        "4294967295",
        cls=LimitedArguments,
        yaml="share: 0\ndata_seed: null\n",
    )
    assert (args.sizes, args.seed, args.share, args.training) == (
        [2],
        2**32 - 1,
        0.0,
        {"data_seed": None},
    )


@pytest.mark.parametrize(
    "words", [["--name", "caf\udce9"], ["--names", "a", "\udcff"], ["--name=\udce9"]]
)
def test_bytes_of_another_encoding(parse, words):
    """As Python gives them in `sys.argv`."""
    with pytest.raises(InputError, match="which is not UTF-8; write it in UTF-8$"):
        parse(*words)


@pytest.mark.parametrize(
    ("recipe", "old", "new"),
    [
        ("pretrain", "stream", "wrapped"),
        ("finetune", "best_fit", "bfd_split"),
        ("finetune_task", "best_fit", "bfd"),
    ],
)
def test_old_values_lead_to_the_new_ones(recipe, old, new):
    script = config.shipped("recipes", "*.py")[recipe]
    with pytest.raises(InputError, match=rf"--packing: got '{old}', .*; did you mean {new}\?$"):
        config.check_recipe_args(script, ["--packing", old])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", "inf"),
        ("learning_rate", "1e400"),
        ("learning_rate", "-1"),
        ("weight_decay", "inf"),
        ("max_grad_norm", "-1"),
        ("save_total_limit", "-1"),
        ("save_total_limit", "0"),
        ("dataloader_num_workers", "-1"),
        ("dataloader_prefetch_factor", "0"),
    ],
)
def test_numbers_that_upstream_takes_and_nothing_trains_with(parse, name, value):
    said = complaint(parse, f"--{name}", value, cls=TrainArguments)
    assert said.startswith(f"command line: --{name}: got '{value}', expected ")

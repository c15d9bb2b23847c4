"""What is scored: all of a file, but of a model's own training file what its run held out; and what
is said of the rest."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import evaluate
import pytest

from hfscale.arguments import DataArguments, TaskArguments
from hfscale.data.fingerprints import text_fingerprint
from hfscale.data.splits import load_splits
from hfscale.evaluation.scores import check_examples
from hfscale.evaluation.training_runs import training_runs
from hfscale.metrics.evaluate_metrics import load_metrics
from hfscale.process import InputError
from hfscale.tasks.examples import example_texts, load_task, split_rows
from recipes.score import ScoreArguments, load_data

ROWS = [{"q": f"What is {i} and {i % 7}?", "a": f"It is {i + i % 7}."} for i in range(60)]
TEMPLATES = {"prompt": "{q}\n", "target": "{a}", "metrics": ["exact_match"]}


def write(name: str, rows: list[dict]) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8"
    )
    return name


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("task.jsonl", ROWS)
    return tmp_path


def load_score_data(args: ScoreArguments):
    return load_data(args, [] if args.predictions else args.model)


def score_data(*sources: str, model: list[str] | None = None, **settings):
    args = ScoreArguments(task_source=list(sources), model=model or ["m"], **TEMPLATES | settings)
    return load_score_data(args)


def trained(folder: str = "run", **settings) -> str:
    """What a run of finetune_task leaves that says what it was trained on."""
    args = TaskArguments(
        **{"task_source": ["task.jsonl"], "validation_examples": 4, **TEMPLATES} | settings
    )
    held_out = example_texts(load_task(args, seed=0))["validation"]
    record = {
        "config": asdict(args) | {"seed": 0, "model": "new"},
        "data": {"fingerprint": {"validation": text_fingerprint(held_out)}},
    }
    Path(folder).mkdir(parents=True)
    Path(folder, "run.json").write_text(json.dumps(record))
    return folder


def lines_held_out(**settings) -> list[int]:
    args = TaskArguments(
        **{"task_source": ["task.jsonl"], "validation_examples": 4, **TEMPLATES} | settings
    )
    return sorted(int(place.rpartition(":")[2]) for place, _ in split_rows(args)[1])


def lines_of(data) -> list[int]:
    return [int(place.rpartition(":")[2]) for place in data.rows["place"]]


# ---- how much of a file


@pytest.mark.parametrize("count", [1, 2, 9, 60, 1200])
def test_all_of_a_file_is_scored_in_its_order(count):
    """Also where it is too short to hold a tenth out, or longer than training would hold out."""
    rows = [{"q": f"What is {i}?", "a": str(i)} for i in range(count)]
    data = score_data(write("many.jsonl", rows))
    assert data.rows["prompt"][:] == [f"What is {i}?\n" for i in range(count)]
    assert (data.counts["read"], data.counts["scored"]) == (count, count) and data.notes == []


def test_equal_rows_all_count():
    assert len(score_data(write("twice.jsonl", ROWS[:3] * 5)).rows) == 15


def test_at_most_so_many_are_always_the_same_ones():
    data = score_data("task.jsonl", validation_examples=7)
    again = score_data(write("turned.jsonl", ROWS[::-1]), validation_examples=7)
    assert sorted(data.rows["prompt"]) == sorted(again.rows["prompt"]) and len(data.rows) == 7
    assert lines_of(data) == sorted(lines_of(data))
    assert data.counts == Counter({"read": 60, "beyond": 53, "scored": 7})


def test_a_validation_source_is_scored_whole():
    write("held.jsonl", ROWS[:12])
    data = score_data("task.jsonl", task_validation_source=["held.jsonl"])
    assert len(data.rows) == data.counts["read"] == 12


def test_what_is_empty_is_dropped_and_counted():
    write("gaps.jsonl", [*ROWS[:5], {"q": "Why?", "a": " "}, {"q": "", "a": "so"}])
    data = score_data("gaps.jsonl", drop_empty=True)
    assert data.counts == Counter({"read": 7, "empty": 2, "scored": 5})
    with pytest.raises(InputError, match="gaps.jsonl:6: the target is empty"):
        score_data("gaps.jsonl")


def test_embedded_examples_are_those_held_out():
    data = load_score_data(
        ScoreArguments(
            task_source=["embedded:dialogue"],
            task_format="chat",
            validation_examples=9,
            metrics=["chrf"],
        )
    )
    assert len(data.rows) == data.counts["scored"] == 9 and "embedded:dialogue" in data.notes[0]


# ---- the file that a model was trained on


def test_of_its_own_file_what_the_run_held_out():
    trained()
    for path in ("task.jsonl", "./task.jsonl", str(Path("task.jsonl").absolute())):
        data = score_data(path, model=["run"])
        assert lines_of(data) == lines_held_out() and len(lines_of(data)) == 4
        assert data.counts == Counter({"read": 60, "trained_on": 56, "scored": 4})
        assert data.notes == [f"run was trained on {path}: only what it held out is scored"]


def test_also_with_another_prompt_and_under_another_name():
    trained()
    write("copy.jsonl", ROWS[::-1])
    data = score_data("copy.jsonl", model=["run"], prompt="Question: {q} Answer:")
    assert sorted(data.rows["prompt"]) == sorted(
        f"Question: {ROWS[i - 1]['q']} Answer:" for i in lines_held_out()
    )


def test_also_of_a_checkpoint_and_of_models_tuned_on():
    trained()
    Path("run/checkpoint-5").mkdir()
    Path("later").mkdir()
    Path("later/run.json").write_text(
        json.dumps({"config": {"model": "run", "source": ["books.txt"]}})
    )
    assert [folder for folder, _ in training_runs("later")] == ["later", "run"]
    for model in ("run/checkpoint-5", "later"):
        assert lines_of(score_data("task.jsonl", model=["m", model])) == lines_held_out()


def test_two_models_are_judged_on_what_both_held_out():
    trained("a", validation_examples=5)
    trained("b", validation_examples=2)
    data = score_data("task.jsonl", model=["a", "b"])
    assert lines_of(data) == lines_held_out(validation_examples=2) and len(data.rows) == 2


def test_another_file_is_scored_whole_and_what_it_shares_is_said():
    trained()
    learned = [row for i, row in enumerate(ROWS, 1) if i not in lines_held_out()]
    write("other.jsonl", [*learned[:3], *({"q": f"Who is {i}?", "a": "x"} for i in range(20))])
    data = score_data("other.jsonl", model=["run"])
    assert len(data.rows) == 23 and data.counts["trained_on"] == 0
    assert data.notes == [
        "3 examples of other.jsonl are also among those that run learned from",
        "nothing is held out: run did not learn from other.jsonl",
    ]


def test_of_several_files_only_its_own_lose_rows():
    trained()
    write("other.jsonl", [{"q": f"Who is {i}?", "a": "x"} for i in range(20)])
    data = score_data("task.jsonl", "other.jsonl", model=["run"])
    assert len(data.rows) == 24 and data.counts["trained_on"] == 56


def test_a_file_that_changed_since_is_named():
    trained()
    write("task.jsonl", [*ROWS, *({"q": f"Who is {i}?", "a": "x"} for i in range(40))])
    data = score_data("task.jsonl", model=["run"])
    assert (
        data.notes[1]
        == "task.jsonl has changed since, so run may have been trained on some of this"
    )


def test_a_file_of_which_nothing_was_held_out_is_refused():
    write("held.jsonl", ROWS[:12])
    trained(task_validation_source=["held.jsonl"])
    with pytest.raises(
        InputError, match="run was trained on all of it; .* --task_source held.jsonl$"
    ):
        score_data("task.jsonl", model=["run"])
    assert len(score_data("held.jsonl", model=["run"]).rows) == 12


def test_the_training_file_may_be_gone():
    trained()
    Path("task.jsonl").rename("kept.jsonl")
    assert len(score_data("kept.jsonl", model=["run"]).rows) == 60  # nobody can know


def test_saved_predictions_have_no_model():
    trained()
    data = load_score_data(
        ScoreArguments(
            task_source=["task.jsonl"], model=["run"], predictions=["p.jsonl"], **TEMPLATES
        )
    )
    assert len(data.rows) == 60 and data.notes == []


# ---- text


def test_text_counts_what_was_left_out_and_names_training_text():
    Path("lines.txt").write_text("one\n\n \ntwo\nthree\n")
    Path("run").mkdir()
    Path("run/run.json").write_text(
        json.dumps({"config": {"model": "new", "source": ["lines.txt", "more.txt"]}})
    )
    args = ScoreArguments(source=["./lines.txt"], sample_by="line", model=["run"])
    data = load_score_data(args)
    assert data.counts["read"] == data.counts["scored"] == 3
    assert data.notes == [
        "run was trained on ./lines.txt; without --source what it held out is scored"
    ]
    write("rows.jsonl", [{"text": "a"}, {"text": None}, {"text": " "}])
    data = load_score_data(ScoreArguments(source=["rows.jsonl"], model=["run"]))
    assert data.counts == Counter({"read": 3, "empty": 2, "scored": 1}) and data.notes == []


def trained_on_text(folder: str, seed: int) -> str:
    """What a run of finetune leaves that says what it held out of lines.txt."""
    Path("lines.txt").write_text("\n".join(f"line {i}" for i in range(40)))
    args = DataArguments(source=["lines.txt"], sample_by="line", validation_fraction=0.2)
    held_out = load_splits(args, seed=seed)["validation"]
    Path(folder).mkdir()
    Path(folder, "run.json").write_text(
        json.dumps(
            {
                "config": asdict(args) | {"seed": seed, "model": "new"},
                "data": {"fingerprint": {"validation": text_fingerprint(held_out)}},
            }
        )
    )
    return folder


def test_what_a_run_held_out_is_counted_and_a_model_that_saw_it_is_named():
    models = [
        trained_on_text("a", seed=0),
        trained_on_text("b", seed=0),
        trained_on_text("c", seed=1),
    ]
    data = load_score_data(ScoreArguments(model=models))
    assert data.counts == Counter({"read": 40, "trained_on": 32, "scored": 8})
    assert data.notes == [
        "scored is what a held out of the text that it was trained on",
        "c held out another part of lines.txt, so it was trained on some of this",
    ]


# ---- choices


def test_several_columns_of_choices():
    write(
        "pairs.jsonl",
        [
            {"good": "The cats sleep.", "bad": "The cats sleeps.", "worse": "Cats the", "right": i}
            for i in range(3)
        ],
    )
    settings = {"prompt": None, "target": None, "metrics": ["accuracy"]}

    def answers(choices, answer=None):
        data = score_data("pairs.jsonl", choices=choices, label=answer, **settings)
        assert data.rows["prompt"][:] == [""] * 3
        return [row["choices"][row["answer"]] for row in data.rows]

    assert answers(["good", "bad"]) == ["The cats sleep."] * 3
    assert answers(["bad", "good"], "good") == ["The cats sleep."] * 3
    assert answers(["good", "bad", "worse"], "right") == [
        "The cats sleep.",
        "The cats sleeps.",
        "Cats the",
    ]
    for choices, answer, match in (
        (
            "good",
            "right",
            r"pairs\.jsonl:1: column 'good' holds .* give the columns that hold one each",
        ),
        (["good", "bat"], None, r"pairs\.jsonl:1: no column 'bat'; .*did you mean bad\?"),
        (
            ["good", "bad"],
            "right",
            r"pairs\.jsonl:3: the answer 2 is not an index, from 0, of 2 choices",
        ),
        (["good", "bad"], "worse", r"pairs\.jsonl:1: the answer 'Cats the' is not an index"),
    ):
        with pytest.raises(InputError, match=match):
            answers(choices, answer)
    write("pairs.jsonl", [{"good": "a", "bad": " "}])
    with pytest.raises(
        InputError,
        match=r"pairs\.jsonl:1: has the choices \['a', ' '\]; expected texts that are not",
    ):
        answers(["good", "bad"])


# ---- references, before anything is generated


def test_references_that_cannot_be_scored_are_named_with_file_and_line():
    write("task.jsonl", [*ROWS[:3], {"q": "Что?", "a": "кошка спит"}])
    with pytest.raises(
        InputError, match=r"^rouge: task\.jsonl:4: the tokenizer rouge_score drops most of 'кошка"
    ):
        args = TaskArguments(metrics=["rouge"])
        metrics = evaluate.combine(load_metrics(["rouge"], {}))
        check_examples(score_data("task.jsonl").rows, args, metrics, False)
    with pytest.raises(InputError, match="did you mean solution"):
        write("code.jsonl", [{"q": "def f():", "solution": "pass"}])
        score_data(
            "code.jsonl",
            target="{solution}",
            test_program="{prediction}{soluton}",
            metrics=["pass_at_k"],
            allow_code_execution=True,
        )

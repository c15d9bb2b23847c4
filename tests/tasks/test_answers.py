"""Answers to a task's examples: the same in any batch, cut where a prompt is too long, kept when a
run is killed.
"""

import json
import math
import re

import evaluate
import pytest
import torch
from datasets import Dataset, DatasetDict
from sacrebleu import corpus_bleu
from transformers import GPT2Config, GPT2LMHeadModel

from hfscale.arguments import TaskArguments
from hfscale.data.tokenizer import train_bpe
from hfscale.metrics.batches import Journal, run_batches
from hfscale.metrics.evaluate_metrics import compute_with_intervals, load_metrics
from hfscale.metrics.texts import choice_statistics
from hfscale.process import InputError
from hfscale.tasks.answers import answer_task, predict
from hfscale.tasks.choice_scores import score_choices
from hfscale.tasks.examples import load_task
from hfscale.tasks.fitting import fit_examples
from hfscale.tasks.programs import check_programs

TEXTS = [f"line {i}: the cat number {i * 7 % 13} sat on mat {i * 5 % 11}" for i in range(40)]
PROMPTS = ["the cat", "line 3: the cat number 8 sat on mat", "", "mat " * 30, "sat on", "the"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(Dataset.from_dict({"text": TEXTS}), 320)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_layer=2,
            n_head=2,
            n_embd=32,
            n_positions=24,
            initializer_range=0.4,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()


@pytest.fixture
def examples():
    return Dataset.from_dict({"prompt": PROMPTS})


def greedy(model, tokenizer, prompt: str, max_new_tokens: int) -> tuple[str, bool]:
    """One token at a time, without a cache, a batch or padding."""
    ids = (tokenizer(prompt)["input_ids"] or [0])[-(24 - max_new_tokens) :]
    made = []
    for _ in range(max_new_tokens):
        with torch.no_grad():
            made.append(
                model(torch.tensor([ids + made]), use_cache=False).logits[0, -1].argmax().item()
            )
        if made[-1] == 0:
            break
    return tokenizer.decode(made, skip_special_tokens=True), made[-1] == 0


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_answers_are_those_of_each_prompt_alone(model, tokenizer, examples, batch_size):
    found = predict(model, tokenizer, examples, max_new_tokens=8, batch_size=batch_size)
    expected = [greedy(model, tokenizer, prompt, 8) for prompt in PROMPTS]
    assert [(row["prediction"], row["finished"]) for row in found] == expected
    cut = [max(0, len(tokenizer(prompt)["input_ids"]) - 16) for prompt in PROMPTS]
    assert [row["cut_tokens"] for row in found] == cut and cut[3] > 0


def test_a_stop_string_ends_an_answer(model, tokenizer, examples):
    whole = [row["prediction"] for row in predict(model, tokenizer, examples, max_new_tokens=8)]
    stop = whole[0][2:4]
    found = predict(model, tokenizer, examples, max_new_tokens=8, stop_strings=[stop])
    assert [row["prediction"] for row in found] == [text.split(stop)[0] for text in whole]
    assert found[0]["finished"] and found[0]["prediction"] != whole[0]


def test_eos_ends_an_answer(model, tokenizer, examples):
    eager = GPT2LMHeadModel(model.config)
    eager.load_state_dict(model.state_dict())
    eager.lm_head.weight = torch.nn.Parameter(
        torch.zeros_like(eager.lm_head.weight)
    )  # all alike: the first, EOS
    found = predict(eager, tokenizer, examples, max_new_tokens=8)
    assert found == [
        {"prediction": "", "finished": True, "cut_tokens": row["cut_tokens"]} for row in found
    ]


def test_samples_repeat_and_leave_the_random_state(model, tokenizer, examples):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    draw = [
        [
            row["prediction"]
            for row in predict(
                model.train(),
                tokenizer,
                examples,
                max_new_tokens=8,
                batch_size=2,
                do_sample=True,
                seed=seed,
            )
        ]
        for seed in (1, 1, 9)
    ]
    assert draw[0] == draw[1] != draw[2]
    assert (torch.rand(3) == expected).all() and model.training
    model.eval()


@pytest.mark.parametrize(
    "settings", [{"max_new_tokens": 24}, {"max_new_tokens": 0}, {"batch_size": 0}]
)
def test_settings_that_leave_no_room_are_refused(model, tokenizer, examples, settings):
    with pytest.raises(InputError, match="max_new_tokens .* context of 24"):
        predict(model, tokenizer, examples, **{"max_new_tokens": 8} | settings)


def test_a_tokenizer_of_another_model_is_refused(tokenizer, examples):
    small = GPT2LMHeadModel(
        GPT2Config(vocab_size=100, n_layer=1, n_head=1, n_embd=8, n_positions=24)
    )
    with pytest.raises(InputError, match="outside the model's vocabulary of 100"):
        predict(small, tokenizer, examples, max_new_tokens=8)
    with pytest.raises(InputError, match="outside the model's vocabulary of 100"):
        score_choices(
            small,
            tokenizer,
            Dataset.from_list([{"prompt": "a", "choices": TEXTS[:2], "answer": 0}]),
        )


def test_nan_logits_name_the_examples(model, tokenizer, examples):
    broken = GPT2LMHeadModel(model.config).eval()
    broken.transformer.ln_f.bias.data[0] = math.nan
    with pytest.raises(FloatingPointError, match=r"NaN .*examples \[1, 3\]"):
        predict(broken, tokenizer, examples, max_new_tokens=4, batch_size=2)


def test_predictions_are_scored_with_intervals():
    examples = Dataset.from_dict(
        {"references": [["the cat sat on the mat"], ["a dog", "the dog"], ["one two three"]]}
    )
    predictions = ["the cat sat on my mat", "The dog.", "one two three"]
    scores = compute_with_intervals(
        evaluate.combine(load_metrics(["bleu", "exact_match"], {})),
        {"predictions": predictions, "references": examples["references"][:]},
    )
    streams = [["the cat sat on the mat", "a dog", "one two three"], [None, "the dog", None]]
    assert scores["bleu"] == pytest.approx(corpus_bleu(predictions, streams).score)
    assert scores["exact_match"] == pytest.approx(200 / 3)
    assert scores["exact_match_ci95"][0] < 200 / 3 < scores["exact_match_ci95"][1]


def test_a_task_may_have_metrics_of_all_kinds(model, tokenizer):
    """Text, choices and programs at once; what the programs do does not depend on the model."""
    examples = Dataset.from_list(
        [
            {
                "prompt": f"{number} ",
                "references": ["1"],
                "choices": ["cat", "the mat"],
                "answer": 1,
                "program": ["#", "\n"],
                "program_tests": test,
            }
            for number, test in (("1", "assert True"), ("2", "assert False"))
        ]
    )
    args = TaskArguments(
        metrics=["exact_match", "accuracy", "pass_at_k"], max_new_tokens=4, stop_strings=["\n"]
    )
    inputs, records = answer_task(
        model,
        tokenizer,
        examples,
        args,
        num_samples=3,
        do_sample=True,
        allow_code_execution=True,
    )
    assert (inputs["n"], inputs["c"]) == ([3, 3], [3, 0])
    assert [record["passed"] for record in records] == [[True] * 3, [False] * 3]
    assert len(set(records[0]["predictions"] + records[1]["predictions"])) > 1
    expected, _ = score_choices(model, tokenizer, examples)
    assert {name: inputs[name] for name in expected} == expected
    assert inputs["references"] == [["1"], ["1"]]
    assert inputs["predictions"] == [record["prediction"] for record in records]
    metrics = evaluate.combine(load_metrics(args.metrics, {}, pass_at=(1, 3)))
    scores = compute_with_intervals(metrics, inputs)
    assert (scores["pass@1"], scores["pass@3"]) == (0.5, 0.5)
    assert scores["accuracy"] == choice_statistics(**expected)[:, 0].mean()
    with pytest.raises(InputError, match="allow_code_execution"):
        answer_task(model, tokenizer, examples, args)


def test_tests_of_programs_run_apart_from_them(model, tokenizer):
    test = "import sys\nassert not hasattr(sys, 'mark')"
    rest = "\nimport sys\nsys.mark = 1\n"
    examples = Dataset.from_list(
        [
            {"prompt": "1 ", "references": ["1"], "program": ["#", rest], "program_tests": test},
            {
                "prompt": "1 ",
                "references": ["1"],
                "program": ["#", rest + test],
                "program_tests": "",
            },
        ]
    )
    args = TaskArguments(metrics=["pass_at_k"], max_new_tokens=4, stop_strings=["\n"])
    _, records = answer_task(model, tokenizer, examples, args, allow_code_execution=True)
    assert [record["passed"] for record in records] == [[True], [False]]


def test_empty_choices_are_refused(model, tokenizer):
    with pytest.raises(InputError, match="item 0 has the choices"):
        score_choices(
            model,
            tokenizer,
            Dataset.from_list([{"prompt": "a", "choices": ["b", " "], "answer": 0}]),
        )


# ---- batches that are kept


def work_until(limit: int, seen: list):
    def work(batch: int) -> list[float]:
        if len(seen) == limit:
            raise KeyboardInterrupt
        seen.append(batch)
        return [batch / 3]

    return work


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    journal, seen = Journal(tmp_path / "kept", {"a": 1}), []
    with pytest.raises(KeyboardInterrupt):
        run_batches(range(5), work_until(3, seen), desc="working", journal=journal)
    [path] = journal.folder.iterdir()
    path.write_text(path.read_text()[:-4])  # the kill came while the third was written
    assert run_batches(range(5), work_until(9, seen), desc="working", journal=journal) == [
        [i / 3] for i in range(5)
    ]
    assert seen == [0, 1, 2, 2, 3, 4]
    assert run_batches(range(5), work_until(6, seen), desc="working", journal=journal) == [
        [i / 3] for i in range(5)
    ]
    whole = [json.loads(line) for line in path.read_text().splitlines()[1:] if line.endswith("]]")]
    assert [number for number, _ in whole] == [0, 1, 2, 3, 4]


def test_kept_batches_of_other_settings_are_refused(tmp_path):
    before, now = (
        Journal(tmp_path, {"batch_size": 8, "b": [1]}),
        Journal(tmp_path, {"batch_size": 4, "b": (1,)}),
    )
    run_batches(range(2), work_until(9, []), desc="working", journal=before)
    with pytest.raises(
        InputError, match=r"other settings \(batch_size was 8, is 4\); put them back"
    ):
        run_batches(range(2), work_until(9, []), desc="working", journal=now)


def test_answers_of_a_killed_run_are_the_same(model, tokenizer, examples, tmp_path, monkeypatch):
    settings = {"max_new_tokens": 6, "batch_size": 2, "do_sample": True, "seed": 4}
    expected = predict(model, tokenizer, examples, **settings)
    journal, generate, calls = Journal(tmp_path / "kept", settings), type(model).generate, []

    def generate_twice(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "generate", generate_twice)
    with pytest.raises(KeyboardInterrupt):
        predict(model, tokenizer, examples, **settings, journal=journal)
    assert predict(model, tokenizer, examples, **settings, journal=journal) == expected
    assert len(calls) == 4  # three batches, the third of them twice


def test_nothing_is_written_before_the_first_batch_is_done(model, tokenizer, examples, tmp_path):
    with pytest.raises(InputError):
        predict(
            model, tokenizer, examples, max_new_tokens=24, journal=Journal(tmp_path / "kept", {})
        )
    assert not (tmp_path / "kept").exists()


# ---- programs

PROGRAMS = [
    {
        "prompt": f"def add_{i}(a):\n    '''Add {i} to a.'''\n",
        "solution": f"def add_{i}(a):\n    return a + {i}\n",
        "test": f"assert add_{i}(1) == {i + 1}\n",
    }
    for i in range(4)
]


def programs(tmp_path, **settings) -> tuple[TaskArguments, Dataset]:
    path = tmp_path / "programs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROGRAMS))
    settings = {
        "prompt": "{prompt}",
        "target": "{solution}",
        "metrics": ["pass_at_k"],
        "max_new_tokens": 4,
    } | settings
    args = TaskArguments(task_source=[str(path)], task_validation_source=[str(path)], **settings)
    return args, load_task(args, seed=0)["validation"]


@pytest.mark.parametrize(
    "settings",
    [
        {"test_program": "{solution}\n{test}"},
        {"test_program": "{target}\n{test}"},
        {"test_program": "{prompt}{target}\n{test}"},
        {"prompt": "word " * 100 + "{prompt}", "test_program": "{prompt}\n{solution}\n{test}"},
        {
            "prompt": "In words: {test}" * 40,
            "truncation_side": "left",
            "test_code": "{test}pass",
            "test_program": "{solution}{test}",
        },
    ],
)
def test_right_answers_pass_whatever_is_cut_for_the_model(model, tokenizer, tmp_path, settings):
    """Programs are built from the columns as they were read, not from a prompt that was cut or a
    target left out.
    """
    args, examples = programs(tmp_path, **settings)
    asked, _ = fit_examples(
        DatasetDict(validation=examples), tokenizer, args, 24, for_training=False
    )
    inputs, _ = answer_task(model, tokenizer, asked["validation"], args, allow_code_execution=True)
    assert (inputs["n"], inputs["c"]) == ([1] * 4, [1] * 4)


def test_programs_that_tell_nothing_are_named_before_anything_is_generated(tmp_path, capsys):
    _, right = programs(tmp_path, test_program="{prediction}\n{test}")
    check_programs(right, allow_code_execution=True)
    assert capsys.readouterr().err == ""
    _, wrong = programs(tmp_path, test_program="{prediction}\nassert add(1)")
    check_programs(wrong, allow_code_execution=True)
    assert re.fullmatch(
        r"program: none of the first 4 right answers passes its test; .*programs.jsonl:\d: "
        r"NameError: "
        r"name 'add' is not defined.* \(--test_program says what is run\)\n",
        capsys.readouterr().err,
    )
    _, without = programs(tmp_path, test_program="{solution}\n{test}")
    check_programs(without, allow_code_execution=True)
    assert (
        "has no {prediction}, so that what the model answers is not run" in capsys.readouterr().err
    )

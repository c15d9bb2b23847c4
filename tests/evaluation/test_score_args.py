"""Arguments of the score recipe that cannot work, or would have no effect: refused at once."""

from pathlib import Path

import pytest

from hfscale.config import parse_args
from hfscale.metrics.evaluate_metrics import check_metric_names
from hfscale.process import InputError
from recipes import score

TASK = "--task_source task.jsonl --prompt {q} --target {a}"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def check(words: str) -> None:
    args = parse_args(score.ScoreArguments, words.split(), recipe=score.__file__)
    score.check_args(args)
    check_metric_names(score.asked_metrics(args), args.metric_options)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("--source a.txt --task_source b.jsonl", "give one of them"),
        ("--source a.txt --predictions b.jsonl", "give one of them"),
        ("--lm_eval hellaswag --predictions b.jsonl", "give one of them"),
        ("--limit 5", "^limit: is of --lm_eval tasks, and none is given"),
        (f"{TASK} --metrics chrf --limit 5", "^limit: is of --lm_eval tasks"),
        ("--lm_eval_data a.jsonl", "^lm_eval_data: is of --lm_eval tasks"),
        ("--lm_eval_include folder", "^lm_eval_include: is of --lm_eval tasks"),
        ("--lm_eval local_perplexity --limit 0", "limit: got '0', expected at least 1"),
        ("--lm_eval local_perplexity --limit -3", "limit: got '-3', expected at least 1"),
        ("--lm_eval ,", "^lm_eval: names no task"),
        (
            "--lm_eval local_perplexity --lm_eval_data missing.jsonl",
            "^lm_eval_data missing.jsonl: no such file",
        ),
        (
            f"{TASK} --metrics chrf --max_length 9",
            "^max_length: is of text that is read in windows",
        ),
        ("--predictions a.jsonl --stride 9", "^stride: is of text"),
        (
            "--source a.txt --metrics bleu",
            "^metrics: bleu judge answers; give --task_source or --predictions",
        ),
        (TASK, "^metrics: missing; a task is judged by bleu, chrf"),
        (
            f"{TASK} --metrics accuracy",
            "^metrics: accuracy needs the answers to choose from; name their --choices",
        ),
        (f"{TASK} --metrics pass_at_k", "^metrics: pass_at_k runs what the model wrote"),
        (
            "--predictions a.jsonl --metrics accuracy",
            "^metrics: accuracy does not judge saved texts",
        ),
        (
            "--predictions a.jsonl --metrics pass_at_k --allow_code_execution",
            "^metrics: pass_at_k does not judge saved",
        ),
        (
            '--predictions a.jsonl --metrics chrf --metric_options {"f1":{}}',
            "'f1' is not among the metrics",
        ),
        (
            '--predictions a.jsonl --metric_options {"pass_at_k":{}}',
            "'pass_at_k' is not among the metrics",
        ),
        (
            '--source a.txt --metric_options {"bleu":{}}',
            "metric_options: 'bleu' is not among the metrics",
        ),
        (
            '--predictions a.jsonl --metric_options {"rouge":{"tokenizer":"word"}}',
            "rouge: got option tokenizer",
        ),
        (
            f"{TASK} --metrics chrf --pass_at 2",
            r"^pass_at: got \[2\], expected numbers from 1 to num_samples \(1\)",
        ),
        (f"{TASK} --metrics chrf --pass_at 0", "--pass_at: got '0', expected at least 1"),
        (f"{TASK} --metrics chrf --pass_at []", r"^pass_at: got \[\], expected numbers from 1"),
        ("--source a.txt --max_length 0", "--max_length: got '0', expected at least 1"),
        ("--source a.txt --stride 0", "--stride: got '0', expected at least 1"),
        (
            f"{TASK} --metrics chrf --pass_at 1 5 --num_samples 4 --do_sample",
            r"^pass_at: got \[1, 5\]",
        ),
        (
            f"{TASK} --metrics chrf --num_samples 3",
            "^num_samples: got 3, but without --do_sample all of them are the",
        ),
        (f"{TASK} --metrics chrf --num_samples 0", "num_samples: got '0', expected at least 1"),
        (
            f"{TASK} --metrics chrf --validation_examples 0",
            "validation_examples: got '0', expected at least 1",
        ),
        (f"{TASK} --metrics chrf --batch_size -2", "batch_size: got '-2', expected at least 1"),
        (
            f"{TASK} --metrics chrf --stop_strings=",
            "^stop_strings: an empty string would end every answer at once",
        ),
        (f"{TASK} --metrics chrf --do_sample --temperature 0", "temperature: got"),
        (f"{TASK} --metrics chrf --do_sample --temperature inf", "temperature: got"),
        (f"{TASK} --metrics chrf --do_sample --top_p 2", "top_p: got"),
        (f"{TASK} --metrics chrf --do_sample --top_k -1", "top_k: got"),
        ("--resume auto --overwrite", "give one of the two"),
        (
            "--output_dir file.txt",
            "^output_dir file.txt: file.txt is not a folder that can be written to",
        ),
        ("--output_dir file.txt/out", "^output_dir file.txt/out: .*file.txt is not a folder"),
        ("--output_dir /proc/none/out", "^output_dir /proc/none/out: cannot be"),
    ],
)
def test_what_cannot_work_is_refused(words, match):
    Path("file.txt").touch()
    with pytest.raises(InputError, match=match) as error:
        check(words)
    assert "\n" not in str(error.value) and [path.name for path in Path().iterdir()] == ["file.txt"]


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--source a.txt --max_length 8 --stride 4",
        f"{TASK} --metrics chrf accuracy --choices c",
        "--predictions a.jsonl b.jsonl",
        '--predictions a.jsonl --metric_options {"f1":{"squad_version":1}}',
        f"{TASK} --metrics pass_at_k --allow_code_execution --num_samples 9 --do_sample --pass_at "
        "1 9",
        "--predictions a.jsonl --task_source b.jsonl --prompt {q} --target {a} --metrics chrf",
    ],
)
def test_what_works_is_taken(words):
    check(words)


def test_lm_evals_tasks_are_known_before_a_model_is_loaded(monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("lm_eval.tasks.TaskManager", None)  # it reads 14,000 files
    with pytest.raises(
        InputError, match=r"^lm_eval: unknown task hellasweg; did you mean hellaswag\?; shipped are"
    ):
        check("--lm_eval arc_easy,hellasweg")
    check("--lm_eval arc_easy,mmlu blimp --limit 3")
    with pytest.raises(InputError, match="^lm_eval: unknown task nope; "):
        check("--lm_eval nope")
    Path("data.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(
        InputError, match="^lm_eval_data data.jsonl: is read by local_.*none of them is asked for"
    ):
        check("--lm_eval arc_easy --lm_eval_data data.jsonl")


def test_no_model_is_no_input():
    with pytest.raises(InputError, match="model: (missing|got)"):
        check("--model")
    args = parse_args(score.ScoreArguments, [], recipe=score.__file__)
    args.model = []
    with pytest.raises(InputError, match="^model: missing"):
        score.check_args(args)

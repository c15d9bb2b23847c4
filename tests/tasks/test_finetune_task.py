"""The task recipe end to end, offline: what it learns, what it writes, and what it refuses."""

import ast
import json
import re
import shlex
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfscale.config import parse_args
from hfscale.generation.task_prompt import load_task_prompt
from hfscale.process import InputError
from recipes import chat, finetune_task, generate, pretrain, score

QUICK = [
    "--use_cpu",
    "--disable_tqdm",
    "--report_to",
    "none",
    "--save_strategy",
    "no",
    "--eval_strategy",
    "no",
]
TINY = [
    "--num_hidden_layers",
    "1",
    "--num_attention_heads",
    "2",
    "--hidden_size",
    "64",
    "--max_position_embeddings",
    "64",
    "--tokenizer",
    "train:300",
    "--per_device_train_batch_size",
    "4",
    *QUICK,
]


def successors(path, count: int = 60) -> str:
    """Which letter follows: four different questions, asked again and again."""
    rows = [{"id": i, "letter": "abcd"[i % 4], "next": "bcde"[i % 4]} for i in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def own_task(tmp_path, **more: str) -> str:
    """A task of one's own: a YAML file, no code."""
    settings = {
        "task_source": f"[{successors(tmp_path / 'rows.jsonl')}]",
        "prompt": '"after {letter}\\n"',
        "target": '"it is {next}"',
        "baseline_input": '"{letter}"',
        "baseline": "copy_source",
        "metrics": "[exact_match, chrf]",
        "max_new_tokens": "12",
        **more,
    }
    path = tmp_path / "own.yaml"
    path.write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
    return str(path)


@pytest.mark.parametrize("packing", ["bfd", "none"])
def test_a_task_of_ones_own_is_learned_and_the_model_stops(tmp_path, packing, capsys):
    folder = tmp_path / "run"
    finetune_task.main(
        [
            "--config",
            own_task(tmp_path),
            *TINY,
            "--packing",
            packing,
            "--learning_rate",
            "5e-3",
            "--max_steps",
            "60",
            "--output_dir",
            str(folder),
            "--lr_scheduler_type",
            "cosine",
        ]
    )
    record = json.loads((folder / "run.json").read_text())
    metrics = record["metrics"]
    assert metrics["eval_exact_match"] == metrics["eval_finished"] * 100 == 100
    assert metrics["before_eval_exact_match"] == metrics["baseline_exact_match"] == 0
    assert (
        metrics["eval_chrf_ci95"] == pytest.approx([100, 100]) and metrics["before_eval_chrf"] < 50
    )
    length = (
        len(AutoTokenizer.from_pretrained(folder)("it is b")["input_ids"]) + 1
    )  # with EOS, for every letter
    assert metrics["eval_loss"] < 0.3 and metrics["eval_tokens"] == 6 * length
    assert record["data"]["shortened"]["train"] == {"prompts": 0, "tokens": 0}
    assert record["data"]["documents"] == {"train": 54, "validation": 6}
    card = (folder / "README.md").read_text()
    assert "| eval_chrf | 100 | 100 to 100 |" in card and "| baseline_chrf |" in card
    shown = capsys.readouterr().out
    assert "copy_source" in shown and "after training" in shown and "--- answer: it is " in shown
    AutoModelForCausalLM.from_pretrained(folder)


def test_a_conversations_template_is_saved_and_answers_end(tmp_path):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"I am {name}."},
                {"role": "assistant", "content": "Hi."},
                {"role": "user", "content": "Who?"},
                {"role": "assistant", "content": f"{name}!"},
            ],
            "id": i,
        }
        for i in range(20)
        for name in ("Ada", "Ben")
    ]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    folder = tmp_path / "run"
    finetune_task.main(
        [
            "--config",
            "dialogue",
            "--task_source",
            str(tmp_path / "chats.jsonl"),
            *TINY,
            "--max_steps",
            "50",
            "--learning_rate",
            "5e-3",
            "--max_new_tokens",
            "8",
            "--output_dir",
            str(folder),
            "--warmup_steps",
            "0",
        ]
    )
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    assert metrics["eval_finished"] == 1
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        rows[0]["messages"][:1], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nI am Ada.<|im_end|>\n<|im_start|>assistant\n"
    assert len(tokenizer("<|im_start|>")["input_ids"]) == 1


def test_from_a_checkpoint_whole_and_with_lora(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(
        "\n".join(f"after {c}\nit is {d}" for c, d in zip("abcd", "bcde", strict=True)) * 20
    )
    base = tmp_path / "base"
    pretrain.main(
        [
            "--source",
            str(text),
            "--split_by",
            "position",
            *TINY,
            "--max_steps",
            "2",
            "--output_dir",
            str(base),
        ]
    )
    for name, more in (("full", []), ("lora", ["--lora_r", "2"])):
        folder = tmp_path / name
        finetune_task.main(
            [
                "--config",
                own_task(tmp_path),
                "--model",
                str(base),
                *QUICK,
                *more,
                "--max_steps",
                "2",
                "--output_dir",
                str(folder),
                "--max_length",
                "40",
            ]
        )
        assert json.loads((folder / "run.json").read_text())["metrics"]["eval_loss"] > 0
        assert (folder / "adapter_config.json").is_file() == (name == "lora")


def shown_counts(text: str) -> dict[str, list[str]]:
    """The table of examples: name -> what stands beside it."""
    cells = [
        [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")]
        for line in text.splitlines()
        if line.startswith(("│", "┃"))
    ]
    first = next(i for i, row in enumerate(cells) if row[0] == "examples")
    return {
        name: values
        for name, *values in cells[first + 1 :]
        if len(values) == 2 and name[0].isalpha() and values[0].replace(",", "").isdigit()
    }


def test_dry_run_shows_a_row_up_to_its_scored_tokens_and_writes_nothing(tmp_path, capsys):
    finetune_task.main(
        ["--config", own_task(tmp_path), *TINY, "--dry_run", "--output_dir", str(tmp_path / "run")]
    )
    out = capsys.readouterr().out
    assert shown_counts(out) == {"read": ["54", "6"], "trained on, or scored": ["54", "6"]}
    row = [
        [cell.strip() for cell in line.split("│")[2:5]]
        for line in out.splitlines()
        if line.count("│") == 5
    ]
    tokens = [token for token, number, _ in row if number.isdigit()]
    labels = [label for _, number, label in row if number.isdigit()]
    text = "".join(map(ast.literal_eval, tokens))
    assert re.fullmatch("after [abcd]\nit is [bcde]<\\|endoftext\\|>", text)
    scored = "".join(ast.literal_eval(label) for label in labels if label != "not scored")
    assert scored == text.partition("\n")[2] and not (tmp_path / "run").exists()


def test_counts_are_on_the_screen_and_in_the_record(tmp_path, capsys):
    """What was read is what was left out, for each reason, and what was used."""
    rows = [
        {
            "context": f"page {i // 4}",
            "ask": f"about {i}" if i % 40 else "",
            "say": "word " * (40 if i % 50 == 1 else 2),
        }
        for i in range(200)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    folder = tmp_path / "run"
    words = [
        "--task_source",
        str(path),
        "--prompt",
        "{ask} {context}\n",
        "--target",
        "{say}",
        "--max_new_tokens",
        "8",
        *TINY,
        "--max_steps",
        "1",
        "--output_dir",
        str(folder),
    ]
    with pytest.raises(
        InputError,
        match=r"rows.jsonl:2: its target has \d+ tokens, which .*; so it is with 4 of 200 "
        r"examples \(also .*rows.jsonl:52, .*rows.jsonl:102, .*rows.jsonl:152\); ",
    ):
        finetune_task.main([*words, "--max_length", "40"])
    with pytest.raises(InputError, match="rows.jsonl:1: the prompt is empty|the prompt is empty"):
        finetune_task.main([*words, "--prompt", "{ask}"])
    words += ["--max_length", "40", "--prompt", "{ask}", "--drop_empty", "--long_targets", "drop"]
    finetune_task.main(words)
    shown = shown_counts(capsys.readouterr().out)
    record = json.loads((folder / "run.json").read_text())["data"]
    train, held_out = record["examples"]["train"], record["examples"]["validation"]
    assert (train["read"], held_out["read"]) == (180, 20) and record["documents"] == {
        "train": train["read"] - train["empty"],
        "validation": held_out["read"] - held_out["empty"],
    }
    for counts in (train, held_out):
        assert counts["read"] == counts["empty"] + counts["long_target"] + counts["used"]
    assert record["dropped"] == {"shared": 0, "empty": 5, "unanswered": 0, "long_target": 4}
    assert shown["dropped: target too long"] == [
        str(train["long_target"]),
        str(held_out["long_target"]),
    ]
    assert shown["trained on, or scored"] == [str(train["used"]), str(held_out["used"])]


def ready_words(out: str) -> list[str]:
    """The words of the command that a run ends with, as a shell reads them."""
    return shlex.split(out.partition("\nnext: ")[2])


@pytest.mark.parametrize(
    ("rows", "prompt", "columns"),
    [
        (
            [{"letter": "abcd"[i % 4], "next": "it's", "id": i} for i in range(40)],
            "after {letter}\\n",
            1,
        ),
        (
            [{"letter": "--" + "abcd"[i % 4], "next": "e", "id": i} for i in range(40)],
            "{letter}",
            1,
        ),
        (
            [{"a letter": "abcd"[i % 4], "page": {"no": i}, "next": "e"} for i in range(40)],
            'Page "{page.no}":\\n{a letter}\\n',
            2,
        ),
    ],
)
def test_the_prompt_travels_with_the_model_and_the_last_line_asks_it(
    tmp_path, capsys, rows, prompt, columns
):
    path, folder = tmp_path / "rows.jsonl", tmp_path / "the run"
    path.write_text("\n".join(map(json.dumps, rows)))
    prompt = prompt.replace("\\n", "\n")
    finetune_task.main(
        [
            "--task_source",
            str(path),
            "--prompt",
            prompt,
            "--target",
            "{next}",
            "--stop_strings",
            "!",
            "--max_new_tokens",
            "5",
            "--validation_examples",
            "1",
            *TINY,
            "--max_steps",
            "1",
            "--output_dir",
            str(folder),
        ]
    )
    task = load_task_prompt(str(folder))
    assert (task.prompt, task.stop_strings, task.max_new_tokens, len(task.columns)) == (
        prompt,
        ["!"],
        5,
        columns,
    )
    words = ready_words(capsys.readouterr().out)
    recipe = generate.__file__
    args = parse_args(generate.GenerateArguments, words[2:], recipe=recipe)
    assert (Path(words[0]).name, words[1]) == ("hfscale", "generate")
    assert args.model == str(folder) and args.do_sample is False
    sample = json.loads((folder / "run.json").read_text())["samples"][0]
    assert [task.fill(text).strip() for text in args.prompts] == [
        sample.partition("\n--- answer: ")[0]
    ]


def test_prompt_and_response_files_talk_with_a_chat_template(tmp_path, capsys):
    """No templates, only usual column names: the result answers in `chat`."""
    rows = [
        {"instruction": f"Say {name}.", "input": "", "output": name, "id": i}
        for i in range(20)
        for name in ("Ada", "Ben")
    ]
    path, folder = tmp_path / "rows.jsonl", tmp_path / "run"
    path.write_text("\n".join(map(json.dumps, rows)))
    finetune_task.main(
        [
            "--task_source",
            str(path),
            "--chat_template",
            "chatml",
            "--add_tokens",
            "<|im_start|>",
            "<|im_end|>",
            *TINY,
            "--max_steps",
            "60",
            "--learning_rate",
            "5e-3",
            "--warmup_steps",
            "0",
            "--max_new_tokens",
            "8",
            "--metrics",
            "exact_match",
            "--output_dir",
            str(folder),
        ]
    )
    assert json.loads((folder / "run.json").read_text())["metrics"]["eval_exact_match"] == 100
    assert load_task_prompt(str(folder)).prompt is None
    words = ready_words(capsys.readouterr().out)
    assert words[1] == "chat" and words[-1] in ("Say Ada.", "Say Ben.")
    chat.main(words[2:])
    assert capsys.readouterr().out.rstrip().endswith(f"model: {words[-1][4:-1]}")


def test_one_file_trains_and_scores(tmp_path, monkeypatch, capsys):
    """Names of both recipes, a single value for a list, metrics that only one of them measures."""
    monkeypatch.chdir(tmp_path)
    names = {
        "allow_code_execution": "true",
        "output_dir": "runs/own",
        "model": "new",
        "num_hidden_layers": "1",
        "num_attention_heads": "2",
        "hidden_size": "64",
        "max_position_embeddings": "64",
        "tokenizer": '"train:300"',
        "max_steps": "2",
        "use_cpu": "true",
        "report_to": "none",
        "save_strategy": '"no"',
        "disable_tqdm": "true",
        "batch_size": "4",
    }
    config = own_task(tmp_path, metrics="exact_match", **names)
    finetune_task.main(["--config", config])
    out = capsys.readouterr().out
    assert "not measured" not in out
    score.main(["--config", config, "--output_dir", "runs/scores"])
    record = json.loads(Path("runs/scores/scores.json").read_text())
    assert record["config"]["model"] == ["runs/own"] and record["config"]["batch_size"] == 4
    assert "eval_exact_match" in record["systems"][0]["metrics"]


def test_metrics_that_need_more_than_answers_are_left_to_score(tmp_path, capsys):
    rows = [
        {"q": f"is it {i % 7}", "options": ["yes", "no"], "answer": i % 2, "id": i}
        for i in range(40)
    ]
    path, folder = tmp_path / "rows.jsonl", tmp_path / "run"
    path.write_text("\n".join(map(json.dumps, rows)))
    finetune_task.main(
        [
            "--task_source",
            str(path),
            "--prompt",
            "{q}: ",
            "--choices",
            "options",
            "--metrics",
            "accuracy",
            "pass_at_k",
            "exact_match",
            "--test_program",
            "{prediction}",
            "--max_new_tokens",
            "4",
            *TINY,
            "--max_steps",
            "1",
            "--output_dir",
            str(folder),
        ]
    )
    assert (
        f"not measured here, but by score --model {folder}: accuracy, pass_at_k"
        in capsys.readouterr().out
    )
    assert "eval_exact_match" in json.loads((folder / "run.json").read_text())["metrics"]
    assert load_task_prompt(str(folder)).prompt == "{q}:"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--prompt", "{question}"], "no column 'question'; it has id, letter, next"),
        (
            ["--max_new_tokens", "64"],
            "max_new_tokens: got 64; expected at least 1 and, to leave room",
        ),
        (
            ["--max_length", "0"],
            "--max_length: got '0', expected at least 2",
        ),
        (["--max_new_tokens", "0"], "--max_new_tokens: got '0', expected at least 1"),
        (["--train_examples", "0"], "--train_examples: got '0', expected at least 1"),
        (["--validation_examples", "-3"], "--validation_examples: got '-3', expected at least 1"),
        (
            ["--target", "it is {next}" * 40],
            r"rows.jsonl:\d+: its target has .* do not fit into 64; .* with 60 of 60",
        ),
        (["--task_format", "chat"], "no column messages, conversations, turns"),
        (
            ["--metrics", "accuracy"],
            "metrics: accuracy needs choices; name the column that lists them with --choices",
        ),
        (
            ["--metrics", "pass_at_k", "--test_program", "{letr}{prediction}"],
            "no column 'letr'; .*did you mean letter",
        ),
        (
            ["--long_targets", "cut"],
            "long_targets: got 'cut', expected one of stop, drop, truncate",
        ),
        (
            ["--label_smoothing_factor", "2"],
            "label_smoothing_factor: got 2.0, expected from 0 to below 1",
        ),
        (["--lora_r", "2"], "model new: random weights are trained whole"),
        (["--metrics", "blue"], "metrics: got 'blue', expected one of bleu"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message) as raised:
        finetune_task.main(
            [
                "--config",
                own_task(tmp_path),
                *TINY,
                "--output_dir",
                str(tmp_path / "run"),
                *arguments,
            ]
        )
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path):
    with pytest.raises(InputError, match="the tokenizer has no chat template"):
        finetune_task.main(
            [
                "--task_source",
                "embedded:dialogue",
                "--task_format",
                "chat",
                "--train_examples",
                "50",
                "--validation_examples",
                "5",
                *TINY,
                "--output_dir",
                str(tmp_path / "run"),
            ]
        )


@pytest.mark.slow(seconds=85)
def test_a_small_model_translates_held_out_values(tmp_path):
    """Less than half of the shipped run's steps: better than copying, and it stops."""
    folder = tmp_path / "run"
    finetune_task.main(
        [
            "--config",
            "translation",
            "--validation_examples",
            "60",
            "--max_steps",
            "260",
            *QUICK,
            "--output_dir",
            str(folder),
        ]
    )
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    assert metrics["eval_bleu_ci95"][0] > max(
        metrics["baseline_bleu_ci95"][1], metrics["before_eval_bleu_ci95"][1]
    )
    assert metrics["eval_finished"] >= 0.9

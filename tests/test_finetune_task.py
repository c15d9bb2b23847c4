"""The task recipe end to end, offline: what it learns, what it writes, and what it refuses."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfscale.config import InputError
from recipes import finetune_task, pretrain

QUICK = ["--use_cpu", "--disable_tqdm", "--report_to", "none", "--save_strategy", "no", "--eval_strategy", "no"]
TINY = ["--n_layer", "1", "--n_head", "2", "--n_embd", "64", "--n_positions", "64", "--tokenizer", "train:300",
        "--per_device_train_batch_size", "4", *QUICK]


def successors(path, count: int = 60) -> str:
    """Which letter follows: four different questions, asked again and again."""
    rows = [{"id": i, "letter": "abcd"[i % 4], "next": "bcde"[i % 4]} for i in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def own_task(tmp_path, **more: str) -> str:
    """A task of one's own: a YAML file, no code."""
    settings = {"task_source": f"[{successors(tmp_path / 'rows.jsonl')}]", "prompt": '"after {letter}\\n"',
                "target": '"it is {next}"', "copied": '"{letter}"', "baseline": "copy_source",
                "metrics": "[exact_match, chrf]", "max_new_tokens": "12", **more}
    path = tmp_path / "own.yaml"
    path.write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
    return str(path)


@pytest.mark.parametrize("packing", ["best_fit", "pad"])
def test_a_task_of_ones_own_is_learned_and_the_model_stops(tmp_path, packing, capsys):
    folder = tmp_path / "run"
    finetune_task.main(["--config", own_task(tmp_path), *TINY, "--packing", packing, "--learning_rate", "5e-3",
                        "--max_steps", "60", "--output_dir", str(folder), "--lr_scheduler_type", "cosine"])
    record = json.loads((folder / "run.json").read_text())
    metrics = record["metrics"]
    assert metrics["eval_exact_match"] == metrics["eval_finished"] * 100 == 100
    assert metrics["before_eval_exact_match"] == metrics["baseline_exact_match"] == 0
    assert metrics["eval_chrf_ci95"] == pytest.approx([100, 100]) and metrics["before_eval_chrf"] < 50
    length = len(AutoTokenizer.from_pretrained(folder)("it is b")["input_ids"]) + 1  # with EOS, for every letter
    assert metrics["eval_loss"] < 0.3 and metrics["eval_tokens"] == 6 * length
    assert record["data"]["shortened"]["train"] == {"prompts": 0, "tokens": 0}
    assert record["data"]["documents"] == {"train": 54, "validation": 6}
    card = (folder / "README.md").read_text()
    assert "| eval_chrf | 100 | 100 to 100 |" in card and "| baseline_chrf |" in card
    shown = capsys.readouterr().out
    assert "copy_source" in shown and "after training" in shown and "--- answer: it is " in shown
    AutoModelForCausalLM.from_pretrained(folder)


def test_a_conversations_template_is_saved_and_answers_end(tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"I am {name}."}, {"role": "assistant", "content": "Hi."},
                          {"role": "user", "content": "Who?"}, {"role": "assistant", "content": f"{name}!"}], "id": i}
            for i in range(20) for name in ("Ada", "Ben")]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    folder = tmp_path / "run"
    finetune_task.main(["--config", "dialogue", "--task_source", str(tmp_path / "chats.jsonl"), *TINY, "--max_steps",
                        "50", "--learning_rate", "5e-3", "--max_new_tokens", "8", "--output_dir", str(folder),
                        "--warmup_steps", "0"])
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    assert metrics["eval_finished"] == 1
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(rows[0]["messages"][:1], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nI am Ada.<|im_end|>\n<|im_start|>assistant\n"
    assert len(tokenizer("<|im_start|>")["input_ids"]) == 1


def test_from_a_checkpoint_whole_and_with_lora(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"after {c}\nit is {d}" for c, d in zip("abcd", "bcde", strict=True)) * 20)
    base = tmp_path / "base"
    pretrain.main(["--source", str(text), "--split_by", "position", *TINY, "--max_steps", "2", "--output_dir",
                   str(base)])
    for name, more in (("full", []), ("lora", ["--lora_rank", "2"])):
        folder = tmp_path / name
        finetune_task.main(["--config", own_task(tmp_path), "--model", str(base), *QUICK, *more, "--max_steps", "2",
                            "--output_dir", str(folder), "--max_length", "40"])
        assert json.loads((folder / "run.json").read_text())["metrics"]["eval_loss"] > 0
        assert (folder / "adapter_config.json").is_file() == (name == "lora")


def test_dry_run_shows_what_carries_loss_and_writes_nothing(tmp_path, capsys):
    finetune_task.main(["--config", own_task(tmp_path), *TINY, "--dry_run", "--output_dir", str(tmp_path / "run")])
    assert "not scored" in capsys.readouterr().out and not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments, message", [
    (["--prompt", "{question}"], "no column 'question'; it has id, letter, next"),
    (["--max_new_tokens", "64"], "max_new_tokens: got 64; expected at least 1 and, to leave room"),
    (["--max_length", "0"], "max_new_tokens: got 12; expected at least 1 and, .* less than max_length 0"),
    (["--target", "it is {next}" * 40], r"rows.jsonl:\d+: its target has .* do not fit into 64; .* with 60 of 60"),
    (["--task_format", "chat"], "no column messages, conversations, turns"),
    (["--metrics", "accuracy"], "accuracy"),
    (["--lora_rank", "2"], "model new: random weights are trained whole"),
    (["--metrics", "blue"], "metrics: got 'blue', expected one of bleu"),
])
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message) as raised:
        finetune_task.main(["--config", own_task(tmp_path), *TINY, "--output_dir", str(tmp_path / "run"), *arguments])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path):
    with pytest.raises(InputError, match="the tokenizer has no chat template"):
        finetune_task.main(["--task_source", "embedded:dialogue", "--task_format", "chat", "--train_examples", "50",
                            "--validation_examples", "5", *TINY, "--output_dir", str(tmp_path / "run")])


@pytest.mark.slow
def test_a_small_model_translates_held_out_values(tmp_path):
    """Two thirds of the shipped run's steps: better than copying, and it stops."""
    folder = tmp_path / "run"
    finetune_task.main(["--config", "translation", "--validation_examples", "60", "--max_steps", "400", *QUICK,
                        "--output_dir", str(folder)])
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    assert metrics["eval_bleu_ci95"][0] > max(metrics["baseline_bleu_ci95"][1], metrics["before_eval_bleu_ci95"][1])
    assert metrics["eval_finished"] >= 0.9

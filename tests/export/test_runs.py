"""A run of every recipe that trains is exported by the name of its folder alone."""

import json

import pytest

from hfscale.export.held_out import held_out_texts
from hfscale.process import InputError
from recipes import export, finetune, finetune_preference, finetune_task, pretrain
from tests.tiny_models import GPT2, save_tiny_model, tiny_tokenizer

QUICK = [
    *("--max_steps", "2", "--per_device_train_batch_size", "4", "--save_strategy", "no"),
    *("--report_to", "none", "--bf16", "false", "--use_cpu", "--disable_tqdm"),
]
SHAPE = [
    *("--tokenizer", "train:300", "--num_hidden_layers", "1", "--num_attention_heads", "2"),
    *("--hidden_size", "32", "--max_position_embeddings", "64"),
]
SHORT = ["--max_new_tokens", "8", "--metrics", "exact_match"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    lines = [f"line {i} counts to {i * 3} and no further" for i in range(60)]
    (folder / "text.txt").write_text("\n".join(lines))
    text = ["--source", str(folder / "text.txt"), "--sample_by", "line"]
    pretrain.main([*text, *SHAPE, *QUICK, "--output_dir", str(folder / "base")])
    return folder / "base"


def adapter(base, folder):
    text = ["--source", str(base.parent / "text.txt"), "--sample_by", "line"]
    finetune.main(
        [*text, *QUICK, "--model", str(base), "--lora_r", "2", "--output_dir", str(folder)]
    )
    return "line "


def task(base, folder):
    rows = [{"letter": "abcd"[i % 4], "next": "bcde"[i % 4]} for i in range(40)]
    (base.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = ["--prompt", "after {letter}\n", "--target", "{next}", *SHORT]
    source = ["--task_source", str(base.parent / "rows.jsonl"), *asked]
    finetune_task.main([*source, *SHAPE, *QUICK, "--output_dir", str(folder)])
    return "after "


def chat(base, folder):
    rows = [{"instruction": f"Say {name}.", "output": name} for name in ("Ada", "Ben") * 20]
    (base.parent / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    talk = ["--chat_template", "chatml", "--add_tokens", "<|im_start|>", "<|im_end|>"]
    source = ["--task_source", str(base.parent / "chat.jsonl"), *talk, *SHORT]
    finetune_task.main([*source, *SHAPE, *QUICK, "--output_dir", str(folder)])
    return "Say "


def preference(base, folder):
    pairs = [{"prompt": f"Is {i} even?", "chosen": " yes", "rejected": " no"} for i in range(20)]
    (base.parent / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    source = ["--source", str(base.parent / "pairs.jsonl"), "--model", str(base)]
    finetune_preference.main([*source, *QUICK, "--output_dir", str(folder)])
    return "Is "


RUNS = {
    adapter: ("gguf", "model-f32.gguf"),
    task: ("safetensors", "task.json"),
    chat: ("html", "model.html"),
    preference: ("gguf", "Modelfile"),
}


@pytest.mark.slow
@pytest.mark.parametrize("make", RUNS, ids=lambda make: make.__name__)
def test_a_run_is_exported_by_its_folder(make, base, tmp_path, capsys):
    begins = make(base, tmp_path / "run")
    to, file_name = RUNS[make]
    words = ["--model", str(tmp_path / "run"), "--to", to, "--output_dir", str(tmp_path / "export")]
    export.main([*words, "--max_new_tokens", "4"])
    assert (tmp_path / "export" / file_name).is_file()
    record = json.loads((tmp_path / "export" / "export.json").read_text())
    assert record["logits"]["largest_difference"] <= 1e-4
    assert record["greedy"]["same_tokens"] == record["greedy"]["tokens"] > 0
    assert record["tokens"]["documents"] >= 2
    texts = held_out_texts(str(tmp_path / "run"), tiny_tokenizer(), max_length=64)
    assert record["tokens"]["documents"] == len(texts)
    assert all(text.startswith(begins) for text in texts)


def test_a_model_without_a_run_wants_a_text(tmp_path):
    save_tiny_model("gpt2", GPT2, tmp_path / "model")
    with pytest.raises(InputError, match='no run.json .*--source "books'):
        export.main(["--model", str(tmp_path / "model"), "--output_dir", str(tmp_path / "export")])
    assert not (tmp_path / "export").exists()

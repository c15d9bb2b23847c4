"""What the terminal shows of whole commands: our words, not the libraries' noise."""

import os
import re
import subprocess
import sys

import pytest

SIZES = [
    *("--hidden_size", "32", "--num_attention_heads", "2", "--num_hidden_layers", "1"),
    *("--max_position_embeddings", "32", "--tokenizer", "char", "--max_steps", "2"),
]
COMMANDS = {
    "pretrain": ["--source", "text.txt", "--split_by", "position", "--output_dir", "small", *SIZES],
    "finetune": [
        *("--model", "small", "--source", "text.txt", "--output_dir", "tuned"),
        *("--split_by", "position", "--max_steps", "2", "--lora_r", "2"),
    ],
    "generate": ["--model", "tuned", "--prompts", "a", "b", "--max_new_tokens", "4"],
}
# What a training says, line for line; samples are the model's.
TRAINING = r"""train text: \d+ documents?, [\d,]+ tokens in \d+ rows
validation text: \d+ documents?, [\d,]+ tokens in \d+ rows
training: 2 steps of 8 rows, cpu, \w+; into \w+
(?:step .*\n)*trained to step 2/2 \| .* \| mean loss [\d.]+
step 2/2 \| eval_loss [\d.]+ \| .*

(?s:.*)
held-out perplexity: .*: as unsure as among \d+ tokens
held-out bits per byte: .*: \d+% of the text's size
model, tokenizer and run.json: \w+
page with curves and settings: \w+/report\.html
next: \S*hfscale generate --model \w+ --prompts .*
also: \S*hfscale serve --model \w+
      \S*hfscale export --model \w+ --to gguf
"""


@pytest.mark.slow(seconds=35)
def test_commands_say_what_is_ours_and_nothing_else(tmp_path):
    (tmp_path / "text.txt").write_text("a few words of text, and others\n" * 200)
    env = {name: value for name, value in os.environ.items() if not name.startswith("TQDM_")}
    env |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for recipe, words in COMMANDS.items():
        done = subprocess.run(
            [sys.executable, "-m", "hfscale.cli", recipe, *words],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert (done.returncode, done.stderr) == (0, ""), recipe
        assert not re.search(r"[Ww]arning|\[transformers\]|\d+it/s", done.stdout), done.stdout
        if recipe in ("pretrain", "finetune"):
            assert re.fullmatch(TRAINING, done.stdout), done.stdout

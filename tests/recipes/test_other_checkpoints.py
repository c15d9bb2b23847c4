"""Checkpoints of other architectures under the recipes that take any: what each recipe gives is
what the model gives by itself, or it is one line. The table of docs/checkpoints.md says which.
"""

import io
import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hfscale.models import load_model
from hfscale.probes import attention_page
from hfscale.process import InputError
from hfscale.shown import show_text
from hfscale.tasks.chat_templates import set_chat_template
from recipes import attention_maps, bias_probe, chat, finetune, generate, score
from tests.tiny_models import BERT, LLAMA, MAMBA, OPT, TOGETHER, save_tiny_model

KINDS = {
    "Llama": ("llama", LLAMA),
    "Qwen3": ("qwen3", LLAMA),
    "Mistral": ("mistral", LLAMA),
    "Gemma": ("gemma", LLAMA),
    "GPT-NeoX": ("gpt_neox", BERT),
    "OPT": ("opt", OPT),
    "Bloom": ("bloom", TOGETHER["bloom"]),
    "Mamba": ("mamba", MAMBA),
    "Phi": ("phi", LLAMA),
}
TABLE = Path(__file__).parents[2] / "docs" / "checkpoints.md"
COLUMNS = [
    "finetune",
    "--lora_r",
    "score",
    "generate",
    "chat",
    "bias_probe",
    "attention_maps",
    "--explain",
]
ROW_EACH = "a row for each document"
# The short names of what a recipe says, as the table has them.
LINES = {
    "": "yes",
    "lets documents that share a row see each other": ROW_EACH,
    "returns no attention weights of heads": "no: no heads",
    "does something that the steps do not know": "no: ALiBi",
}
TEXTS = [
    f"item {i}: {name} saw the {thing} and went on"
    for i in range(10)
    for name in ("Anna", "Ben")
    for thing in ("box", "map")
]
END = "<|endoftext|>"
HELD_OUT = TEXTS[::9]
PAIRS = [("Anna saw the box", "Ben saw the box"), ("the cat sat", "the mat sat on")]
SENTENCE = "the cat sat on"
TEXT = "--source text.txt --validation_source held_out.txt --sample_by line --max_length 60"
QUIET = "--report_to none --disable_tqdm --save_strategy no --bf16 false --use_cpu"
STEP = "--max_steps 1 --warmup_steps 0 --learning_rate 0.01"
GREEDY = "--do_sample false --max_new_tokens 4"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    (folder / "text.txt").write_text("\n".join(TEXTS))
    (folder / "held_out.txt").write_text("\n".join(HELD_OUT))
    rows = "".join(f"{more},{less},stereo,age\n" for more, less in PAIRS)
    (folder / "pairs.csv").write_text("sent_more,sent_less,stereo_antistereo,bias_type\n" + rows)
    for name, (kind, fields) in KINDS.items():
        save_tiny_model(kind, fields, folder / name, padding=2)
        tokenizer = AutoTokenizer.from_pretrained(folder / name)
        set_chat_template(tokenizer, "chatml")
        tokenizer.save_pretrained(folder / name)
    return folder


class Plain:
    """A checkpoint read by transformers alone, one text at a time and without a cache."""

    def __init__(self, folder: Path | PreTrainedModel, tokenizer: Path) -> None:
        self.model = folder
        if isinstance(folder, Path):
            self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model.eval()
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)

    def nats(self, text: str, end: str = "") -> torch.Tensor:
        """Of each token after EOS, which stands before every text."""
        eos = self.tokenizer.eos_token
        ids = torch.tensor(self.tokenizer.encode(eos + text + end))
        with torch.no_grad():
            logits = self.model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        return F.cross_entropy(logits.float(), ids[1:], reduction="none")

    def loss(self, end: str = "") -> float:
        """Mean over all held-out tokens, and what stands behind each text."""
        return torch.cat([self.nats(text, end) for text in HELD_OUT]).mean().item()

    def continued(self, prompt: str, size: int = 4) -> str:
        """The likeliest tokens, one by one."""
        ids = self.tokenizer.encode(prompt, add_special_tokens=False)
        prompt_size = len(ids)
        while len(ids) < prompt_size + size and ids[-1] != self.tokenizer.eos_token_id:
            with torch.no_grad():
                logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            ids.append(int(logits[: len(self.tokenizer)].argmax()))
        return self.tokenizer.decode(ids[prompt_size:], skip_special_tokens=True)


def tuned(name: str, capsys, *words: str) -> str:
    """A run of finetune, whose losses are those of the model before and after. Without cut
    documents, so that they are those of documents alone.
    """
    output = f"{name}-tuned{len(words)}"
    packing = "" if row_of(name)[0] == ROW_EACH else "--packing bfd_split"
    settings = f"{TEXT} {QUIET} {STEP} {packing}".split()
    finetune.main(["--model", name, "--output_dir", output, *settings, *words])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("packing: ")]
    metrics = json.loads(Path(output, "run.json").read_text())["metrics"]
    before = Plain(Path(name), Path(name))
    after = Plain(load_model(output, dtype=torch.float32), Path(output))
    assert metrics["before_eval_loss"] == pytest.approx(before.loss(END), abs=2e-5)
    assert metrics["eval_loss"] == pytest.approx(after.loss(END), abs=2e-5)
    assert abs(metrics["eval_loss"] - metrics["before_eval_loss"]) > 1e-4
    return "".join(said)


def scored(name: str, plain: Plain) -> str:
    score.main(
        ["--model", name, "--source", "held_out.txt", "--sample_by", "line"]
        + ["--max_length", "60", "--output_dir", f"{name}-scores"]
    )
    [system] = json.loads(Path(f"{name}-scores/scores.json").read_text())["systems"]
    assert system["metrics"]["eval_loss"] == pytest.approx(plain.loss(), abs=2e-5)
    return ""


def generated(name: str, plain: Plain) -> str:
    """Prompts of unequal length in one batch."""
    prompts = ["item 3", "Ben saw the box and then", "a"]
    generate.main(
        ["--model", name, "--prompts", *prompts, "--output_file", f"{name}.jsonl", *GREEDY.split()]
    )
    rows = [json.loads(line) for line in Path(f"{name}.jsonl").read_text().splitlines()]
    assert [row["completions"] for row in rows] == [[plain.continued(p)] for p in prompts]
    return ""


def talked(name: str, plain: Plain, capsys) -> str:
    capsys.readouterr()
    chat.main(["--model", name, "--prompts", "the cat", *GREEDY.split()])
    turns = [{"role": "user", "content": "the cat"}]
    prompt = plain.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    answer = capsys.readouterr().out.split("model: ", 1)[1]
    expected = io.StringIO()
    show_text(plain.continued(prompt), file=expected)  # without what would move the cursor
    assert answer.split() == expected.getvalue().split()
    return ""


def probed(name: str, plain: Plain) -> str:
    bias_probe.main(["--model", name, "--pairs", "pairs.csv", "--output_dir", f"{name}-bias"])
    items = json.loads(Path(f"{name}-bias/bias.json").read_text())["items"]
    for item, pair in zip(items, PAIRS, strict=True):
        expected = [-plain.nats(text).sum().item() for text in pair]
        assert item["models"][0]["logliks"] == pytest.approx(expected, abs=1e-4)
    return ""


def mapped(name: str, plain: Plain, *words: str) -> str:
    output = f"{name}-maps{len(words)}"
    try:
        attention_maps.main(
            ["--model", name, "--sentence", SENTENCE, "--output_dir", output, *words]
        )
    except InputError as error:
        assert "\n" not in str(error) and not Path(output).exists()
        return str(error)
    record = json.loads(Path(output, "attention.json").read_text())
    assert record["loss"] == pytest.approx(plain.nats(SENTENCE).mean().item(), abs=2e-5)
    assert not words or record["explain"]["equal"]
    return ""


def in_the_table(line: str) -> str:
    """How the table has what was said."""
    return next(short for words, short in reversed(LINES.items()) if words in line)


def row_of(name: str) -> list[str]:
    rows = [line.strip("|").split("|") for line in TABLE.read_text("utf-8").splitlines()]
    cells = [[cell.strip(" `") for cell in row] for row in rows]
    assert ["checkpoint", *COLUMNS] in cells
    return next(row for row in cells if row[0] == name)[1:]


@pytest.mark.parametrize("name", KINDS)
def test_each_recipe_gives_what_the_model_does_or_says_why_not(name, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    for pictures in ("draw_maps", "draw_scores"):  # most of the time, and the same for all
        monkeypatch.setattr(attention_page, pictures, lambda *values: None)
    plain = Plain(Path(name), Path(name))
    lines = [
        tuned(name, capsys),
        tuned(name, capsys, "--lora_r", "4"),
        scored(name, plain),
        generated(name, plain),
        talked(name, plain, capsys),
        probed(name, plain),
        mapped(name, plain),
        mapped(name, plain, "--explain", "1", "2"),
    ]
    assert [in_the_table(line) for line in lines] == row_of(name)

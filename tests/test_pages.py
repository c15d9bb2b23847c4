"""Every command that README, docs, recipes and configs show, run as it stands there: in one folder, in
one process, made short by the same flags everywhere.

What a command reads lies in that folder under the name that the page gives it, the Hub's `gpt2` too.
"""

import gzip
import io
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image
from transformers import (
    GemmaConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
    set_seed,
)

from hfscale import api
from hfscale.api import leaving_nothing_behind, recipe_module
from hfscale.cli import VERBS, main
from hfscale.config import check_recipe_args
from hfscale.data import sources
from hfscale.data.tokenizer import train_bpe
from hfscale.help import GROUPS
from hfscale.launch import read_launch, split_flags
from hfscale.process import InputError
from hfscale.shown import printable

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "recipes").glob("[!_]*.py"))
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*/*.yaml"))
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.S | re.M)
COMMAND = re.compile(r"^(?:\$ )?(hfscale|python recipes/\w+\.py)(?=\s|$)")
# What makes every command short, by its recipe; the last word on a name counts.
SHAPE = "--num_hidden_layers 1 --num_attention_heads 2 --hidden_size 32"
STEPS = (
    "--max_steps 1 --per_device_train_batch_size 2 --per_device_eval_batch_size 16 "
    "--gradient_accumulation_steps 1 --warmup_steps 0 "
    "--lr_scheduler_type linear --lr_scheduler_kwargs {} --tf32 null --eval_strategy no --save_strategy no --use_cpu true "
    "--report_to none --disable_tqdm true --overwrite true"
)
NEW = f"{SHAPE} {STEPS} --max_length 64"
NO_WORDS = "--save_words null"
SHORT = {
    "quickstart": NEW,
    "pretrain": f"{NEW} --max_position_embeddings 256 --validation_fraction 0.1 {NO_WORDS}",
    "distill": f"{NEW} --max_position_embeddings 128",
    "finetune": STEPS,
    "finetune_task": f"{SHAPE} {STEPS} --max_position_embeddings 256 --train_examples 12 "
    "--validation_examples 3 --max_new_tokens 4",
    "finetune_preference": STEPS,
    "finetune_picture": f"{SHAPE} {STEPS} --encoder_layers 1 --train_examples 12 --validation_examples 3 "
    "--max_new_tokens 4",
    "finetune_reward": f"{STEPS} --num_generations 2 --num_iterations 1 --train_examples 12 "
    "--validation_examples 3 --max_new_tokens 4",
    "prepare_data": "--overwrite true",
    "prepare_data_cluster": "--overwrite true --tasks 2 --workers 1",
    "train_tokenizer": "--overwrite true",
    "score": "--overwrite true --validation_examples 3 --max_new_tokens 4",
    "scale": "--resamples 20 --overwrite true",
    "attention_maps": "--overwrite true",
    "bias_probe": "--overwrite true --num_return_sequences 1",
    "memorization": "--overwrite true --num_samples 2 --max_new_tokens 4 --documents 3 --candidates 20",
    "generate": "--overwrite true --max_new_tokens 4",
    "chat": "--max_new_tokens 4",
    "export": "--overwrite true --documents 4 --scored_documents 1 --max_new_tokens 2",
    "report": "--overwrite true",
    "replay": "--overwrite true",
}
DOCUMENTS = 20  # of each embedded text
# Commands of other programs, and what of ours is only read and not run, each with the reason.
OTHER_PROGRAMS = {
    "make": "starts the project's own programs (tests, quickstart, site), which have tests",
    "pip": "installs",
    "ray": "a cluster",
    "RAY_ADDRESS=HEAD:6379": "a cluster",
    "squeue": "a cluster",
    "sbatch": "a cluster",
    "cat": "reads what a cluster left",
    "cd": "Ollama, which no test has",
    "curl": "asks a server that runs",
    "transformers": "a server",
    "python": "benchmarks and GPU checks, which have tests",
    "python3": "installs, and GPU checks",
    "PYTHONPATH=$PWD/site": "GPU checks",
    "eval": "the reader's shell",
}
NOT_RUN = {
    "hfscale serve": "answers until a signal comes; tests/serving starts it",
    "--web": "answers until a signal comes; tests/serving starts it",
    "hfscale push": "the Hub; tests/training/test_hub.py has one of its own",
    "--lm_eval": "data from the Hub; tests/evaluation/test_lm_eval.py has its own",
    "--to onnx": "half a minute of torch's exporter each; tests/export/test_onnx.py runs it",
    "--executor slurm": "a cluster; tests/cleaning/test_slurm.py has one",
    "hfscale compare": "starts a process for each run; tests/comparing/",
    "hfscale scale --config tiny_cpu": "starts a process for each of 13 runs; tests/scaling/",
    " ...": "stands for more",
}
# Whose output on the page is that of a model which took its minutes to train.
TRAINED = ("hfscale chat --config tiny_cpu",)


class Shown(NamedTuple):
    """A command, the places that show it, and what they say that it prints."""

    words: tuple[str, ...]
    places: list[str]
    output: list[str]


def logical_lines(block: str) -> Iterator[str]:
    """Lines without their comments, those that go on joined."""
    joined = re.sub(r"\\\n\s*", " ", block)
    for line in joined.splitlines():
        yield re.split(r"\s{2,}[#(]|\s#\s", line.strip())[0].strip()


def blocks() -> Iterator[tuple[str, str]]:
    """(place, lines) of everything that may hold commands."""
    for page in PAGES:
        for fence in FENCE.finditer(page.read_text("utf-8")):
            if fence[1] in ("bash", "sh", ""):
                yield page.name, fence[2]
    for recipe in RECIPES:
        yield recipe.name, recipe_module(recipe.stem).__doc__
    for config in CONFIGS:
        lines = config.read_text("utf-8").splitlines()
        said = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
        yield f"{config.parent.name}/{config.name}", "\n".join(said)


def shown_commands() -> list[Shown]:
    """Each command once, in the order of the path from text to a model in use."""
    found: dict[tuple[str, ...], Shown] = {}
    for place, block in blocks():
        output: list[str] | None = None
        for line in logical_lines(block):
            if not COMMAND.match(line):
                if output is not None:
                    output.append(line)
                continue
            for part in line.removeprefix("$ ").split(" && "):
                words = tuple(shlex.split(part))
                if words[0] == "python":
                    words = ("hfscale", Path(words[1]).stem, *words[2:])
                shown = found.setdefault(words, Shown(words, [], []))
                shown.places.append(place)
                is_new = line.startswith("$ ") and not shown.output
                output = shown.output if is_new else None
    order = [name for names in GROUPS.values() for name in names]
    return sorted(found.values(), key=lambda shown: position(shown, order))


def position(shown: Shown, order: list[str]) -> int:
    name = shown.words[1]
    return order.index(name) if name in order else len(order)


SHOWN = shown_commands()


# ---- what the commands read

WORDS = "the cat and the dog of the house have to be that with a town where people live".split()


def prose(number: int, sentences: int = 12) -> str:
    """A text that no rule of cleaning drops, another one for each number."""
    lines = []
    for line in range(sentences):
        shift = (number * 7 + line * 5) % len(WORDS)
        words = WORDS[shift:] + WORDS[:shift]
        names = [
            f"name{chr(97 + (number + line * k) % 26)}{chr(97 + (line + k) % 26)}"
            for k in (1, 3, 7)
        ]
        lines.append(" ".join([*names, *words[: 6 + (number + line) % 5]]).capitalize() + ".")
    return "\n".join(lines) + "\n"


def rows(count: int, **columns) -> str:
    """JSON lines; each column is a function of the number."""
    return "".join(
        json.dumps({name: value(i) for name, value in columns.items()}) + "\n" for i in range(count)
    )


ANSWERS = (
    "Ada wrote it.",
    "In 1843.",
    "Yes.",
    "On the table.",
    "Four.",
    "No.",
    "In London.",
    "Bread.",
)
WRONG_OF_A = {1: "In 1815 or so.", 4: "Three.", 6: "Somewhere."}
WRONG_OF_B = {3: "On the tables."}


def predictions(wrong: dict[int, str]) -> str:
    return rows(
        len(ANSWERS),
        prediction=lambda i: wrong.get(i, ANSWERS[i]),
        reference=lambda i: ANSWERS[i],
    )


def fenced(page: str, mark: str) -> str:
    """The block of a page that begins with this line."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    return next(fence[2] for fence in FENCE.finditer(text) if fence[2].startswith(mark))


CROWS = "sent_more,sent_less,bias_type\nWomen are late.,Men are late.,gender\nOld men sleep.,Young men sleep.,age\n"
PRONOUNS = "".join(
    f"nurse.patient.{answer}.{gender}.txt\tThe nurse said {word} would come.\n"
    for answer in (0, 1)
    for gender, word in (("male", "he"), ("female", "she"))
)
LAW = "params,tokens,loss,corpus\n" + "".join(
    f"{n},{d},{1.7 + 400 / n**0.34 + 410 / d**0.28:.6f},{corpus}\n"
    for corpus in ("a", "b")
    for n in (1e6, 3e6, 1e7, 3e7)
    for d in (2e7, 1e8, 5e8)
)
BLIMP = "blimp/data/agreement.jsonl"
PAIRS = {
    BLIMP: "agreement",
    "evaluation_data/full_eval/blimp_filtered/agreement.jsonl": "agreement",
    "evaluation_data/full_eval/supplement_filtered/turn_taking.jsonl": None,
    "evaluation_data/fast_eval/blimp_fast/agreement.jsonl": "agreement",
}


def pairs(uid: str | None) -> str:
    """Lines of a file of BLiMP or, without a UID, of BabyLM's supplement."""
    more = {} if uid is None else {"UID": lambda i: uid, "linguistics_term": lambda i: "number"}
    return rows(
        3,
        sentence_good=lambda i: f"the cats are {i}",
        sentence_bad=lambda i: f"the cats is {i}",
        **more,
    )


FILES = {
    **{file: pairs(uid) for file, uid in PAIRS.items()},
    "twins.jsonl": pairs("twins") + '{"sentence_good": "a cat", "sentence_bad": "a cat"}\n',
    "crawl.yaml": 'source: ["crawl/*.jsonl"]\n',
    "prompts.txt": "The cat\nA dog\n",
    "my_file.py": "def function(completions, **columns):\n"
    "    return [float(len(text)) for text in completions]\n",
    "questions.jsonl": rows(2, context=prose, question=lambda i: f"Who is {i}?"),
    "qa.jsonl": rows(20, prompt=lambda i: f"Say {i}.", response=lambda i: f"It is {i}."),
    "pairs/part.jsonl": rows(
        30,
        prompt=lambda i: f"What is {i} plus 5?",
        chosen=lambda i: f" It is {i + 5}.",
        rejected=lambda i: " Who knows.",
    ),
    "quiz.jsonl": rows(
        4, q=lambda i: f"{i}+1?", options=lambda i: ["1", "2"], gold=lambda i: i % 2
    ),
    "pairs.jsonl": rows(4, good=lambda i: f"the cats are {i}", bad=lambda i: f"the cats is {i}"),
    "tests.jsonl": rows(
        2,
        prompt=lambda i: f"def f{i}():\n",
        solution=lambda i: f"    return {i}\n",
        test=lambda i: f"assert f{i}() == {i}",
    ),
    "reviews.jsonl": rows(40, review=lambda i: {"text": prose(i, 2)}, stars=lambda i: i % 5),
    "a.jsonl": predictions(WRONG_OF_A),
    "b.jsonl": predictions(WRONG_OF_B),
    "planted.py": fenced("memorization.md", "from hfscale.data.embedded import load_embedded"),
    "my_metrics.py": fenced("metrics.md", "# my_metrics.py"),
    "my_task.yaml": fenced("tasks.md", "# my_task.yaml"),
    "my.yaml": "source: [embedded:python-docs]\nnum_hidden_layers: 2\nmax_steps: 10\n",
    "my_templates.yaml": (ROOT / "recipes/configs/bias_probe/templates.yaml").read_text("utf-8"),
    "crows_pairs_anonymized.csv": CROWS,
    "all_sentences.tsv": f"sentid\tsentence\n{PRONOUNS}",
    "occupations-stats.tsv": "occupation\tbergsma_pct_female\tbls_pct_female\nnurse\t90\t90\n",
    "runs.csv": LAW,
    **{f"train_10M/{i}.train": prose(i, 60) for i in range(3)},
    **{f"dev/{i}.dev": prose(i, 40) for i in range(20, 22)},
    **{
        f"{folder}/{i}.txt": prose(i, 60 if folder == "long" else 12)
        for folder in ("books", "speeches", "long", "wiki")
        for i in range(12)
    },
}
# Folders that a page names as the reader's own, and the command's folder that stands for each.
YOURS = {
    "runs/a": "runs/pretrain-tiny",
    "runs/b": "runs/books",
    "runs/mine": "runs/finetune-gpt2",
    "runs/finetuned": "runs/finetune-gpt2",
    "runs/llama": "runs/tiny-llama",
    "runs/translation": "runs/task-translation",
    "runs/code": "runs/task-code",
    "runs/task-squad": "runs/task-question-answering",
    "runs/scale-tiny": "runs/scale",
    "data/clean": "runs/data",
    "runs/a/checkpoint-1000": "runs/pretrain-tiny",
    "runs/babylm/chck_1M": "runs/babylm-tiny/chck_10",
    "experiments": "runs",
    "runs/small/checkpoint-350": "runs/pretrain-tiny",
    "runs/small/checkpoint-400": "runs/pretrain-tiny",
    "runs/poems": "runs/speeches",
}


def save_gpt2(folder: Path, layers: int = 6) -> None:
    """The Hub's checkpoint, but a million times smaller."""
    set_seed(0)
    texts = [{"text": text} for text in map(prose, range(30))]
    from datasets import Dataset

    tokenizer = train_bpe(Dataset.from_list(texts), 400)
    ids = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    shape = {"n_layer": layers, "n_head": 2, "n_embd": 16, "n_positions": 1024}
    config = GPT2Config(vocab_size=len(tokenizer), **shape, **ids)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_classifier(folder: Path, tokenizer_folder: Path) -> None:
    config = GPT2Config.from_pretrained(tokenizer_folder)
    config.id2label = {0: "fine", 1: "toxic"}
    config.pad_token_id = config.eos_token_id
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    for file in tokenizer_folder.glob("token*"):
        shutil.copy(file, folder)


def save_vit(folder: Path) -> None:
    """The Hub's encoder of pictures, but as small as that GPT-2."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(**sizes, intermediate_size=32, image_size=32, patch_size=16)
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


def save_photos(folder: Path, count: int) -> None:
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (40 + i, 30), (20 * i, 90, 60)).save(folder / f"{i}.jpg")
    lines = rows(count, file_name=lambda i: f"{i}.jpg", text=lambda i: f"photo {i}")
    (folder / "metadata.jsonl").write_text(lines)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as the readers of all pages have it."""
    folder = tmp_path_factory.mktemp("reader")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    for name in ("crawl", "HuggingFaceFW/fineweb-edu"):
        (folder / name).mkdir(parents=True)
        texts = sources.load_embedded("embedded:python-prose").select(range(DOCUMENTS))["text"]
        lines = [json.dumps({"text": text[:5000]}) for text in texts]
        (folder / name / "part.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "dolly").mkdir()
    with gzip.open(folder / "dolly" / "part.jsonl.gz", "wt") as file:
        file.write(FILES["qa.jsonl"])
    GemmaConfig(head_dim=16, num_key_value_heads=1).to_json_file(folder / "gemma.json")
    save_gpt2(folder / "gpt2")
    save_gpt2(folder / "gpt2-xl", layers=2)
    save_classifier(folder / "CLASSIFIER", folder / "gpt2")
    save_vit(folder / "google" / "vit-base-patch16-224")
    save_photos(folder / "photos", 12)
    embedded = sources.load_embedded

    def load_few(name):
        return embedded(name).select(range(DOCUMENTS))

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sources, "load_embedded", load_few)
        yield folder


# ---- the test


def why_not_run(words: tuple[str, ...]) -> str | None:
    line = f"{' '.join(words)} "
    return next((why for mark, why in NOT_RUN.items() if f"{mark} " in line), None)


def bring(words: list[str]) -> None:
    """The folders that the page takes for the reader's own."""
    for word in words:
        if word in YOURS and not Path(word).exists():
            Path(word).parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(YOURS[word], word)


def run_command(words: tuple[str, ...]) -> None:
    """As the command does it, in this process and short."""
    _, recipe, *given = words
    if recipe in VERBS:
        assert main(list(words[1:])) == 0
        return
    flags, given = split_flags(given) if recipe != "plan" else ({}, given)
    if "accelerate" in flags:
        read_launch(flags["accelerate"], flags, use_cpu=False, gpus=8)
    bring(given)
    flags_of_all = SHORT.get(recipe, "")
    if "--save_words" in given:  # as many as a single step reads
        flags_of_all = flags_of_all.replace(NO_WORDS, f"{NO_WORDS} --save_words 10")
    if "--resume" in given:  # a run that does not go on from one that is there
        flags_of_all = flags_of_all.replace("--overwrite true", "--output_dir runs/resumed")
    with leaving_nothing_behind():
        recipe_module(recipe).main([*given, *flags_of_all.split()])


def in_one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.slow(seconds=200)
def test_the_shown_commands_run(place, subtests, capsys, monkeypatch):
    """In order, in one folder: a command reads what an earlier one left."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    monkeypatch.setenv("COLUMNS", "160")
    for shown in SHOWN:
        with subtests.test(" ".join(shown.words[1:])):
            runs_as_shown(shown, capsys)


def runs_as_shown(shown: Shown, capsys) -> None:
    """A command that cannot run here is read; what one prints is what the page says."""
    if why_not_run(shown.words):
        if " ..." not in " ".join(shown.words):
            _, given = split_flags(list(shown.words[2:]))
            check_recipe_args(ROOT / "recipes" / f"{shown.words[1]}.py", given)
        return
    if shown.output and shown.output[0].startswith("error: "):
        with pytest.raises(InputError) as refused:
            run_command(shown.words)
        assert f"error: {refused.value}" == in_one_line(" ".join(shown.output))
        return
    run_command(shown.words)
    printed = in_one_line(printable(capsys.readouterr().out))
    if " ".join(shown.words).startswith(TRAINED):
        return
    for line in shown.output:
        if line and line != "...":
            _, found, printed = printed.partition(in_one_line(line))
            assert found, line


def test_other_programs_are_known():
    """Each line of a block in a page is a command of ours, of a known program, or what it prints."""
    for page in PAGES:
        for fence in FENCE.finditer(page.read_text("utf-8")):
            lines = [line for line in logical_lines(fence[2]) if line] if fence[1] == "bash" else []
            for line in lines:
                first = line.split()[0]
                assert COMMAND.match(line) or first in OTHER_PROGRAMS, f"{page.name}: {line}"


def test_what_is_not_run_is_shown_somewhere():
    lines = [f"{' '.join(shown.words)} " for shown in SHOWN]
    for mark in NOT_RUN:
        assert any(f"{mark} " in line for line in lines), mark
    for command in TRAINED:
        assert any(line.startswith(command) for line in lines), command
    assert len(SHOWN) > 100  # the search does find them


@pytest.mark.slow
def test_the_lines_of_the_python_page_run(place, monkeypatch, capsys):
    plain = api.call_recipe

    def call_short(name, *first, **options):
        pairs = SHORT.get(name, "").replace("--", "").split()
        return plain(name, *first, **options | dict(zip(pairs[::2], pairs[1::2], strict=True)))

    monkeypatch.setattr(api, "call_recipe", call_short)
    names: dict = {}
    for fence in FENCE.finditer((ROOT / "docs" / "python.md").read_text("utf-8")):
        exec(fence[2], names)
    assert names["run"].record["train"]["steps"] == 1
    assert names["after"].sums[:, 0].sum() < names["before"].sums[:, 0].sum()

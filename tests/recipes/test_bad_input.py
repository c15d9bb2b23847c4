"""Whatever is wrong with the input: one clear line, exit status 2, and nothing left behind."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zstandard
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hfscale.data.tokenizer import train_bpe
from hfscale.lock import LOCK
from hfscale.process import InputError, run
from recipes import (
    attention_maps,
    bias_probe,
    compare,
    distill,
    finetune,
    finetune_picture,
    finetune_preference,
    finetune_reward,
    finetune_task,
    generate,
    memorization,
    prepare_data,
    prepare_data_cluster,
    pretrain,
    quickstart,
    scale,
    score,
    train_tokenizer,
)

ROOT = Path(__file__).parents[2]
LINES = [f"line {i}: the cat number {i * 7 % 13} sat on mat {i * 5 % 11}" for i in range(40)]
TRAIN = [
    "--output_dir",
    "out",
    "--max_steps",
    "2",
    "--per_device_train_batch_size",
    "2",
    "--report_to",
    "none",
    "--disable_tqdm",
    "--save_strategy",
    "no",
    "--bf16",
    "false",
]
SHAPE = [
    "--num_hidden_layers",
    "1",
    "--num_attention_heads",
    "2",
    "--hidden_size",
    "32",
    "--max_position_embeddings",
    "16",
]
BASE = {
    pretrain: ["--sample_by", "line", "--tokenizer", "char", *SHAPE, *TRAIN],
    quickstart: ["--sample_by", "line", "--max_length", "16", *TRAIN],
    score: ["--sample_by", "line", "--output_dir", "out"],
    generate: [
        "--model",
        "model",
        "--prompts",
        "cat",
        "--max_new_tokens",
        "4",
        "--output_file",
        "out.jsonl",
    ],
}


def name_of(value) -> str | None:
    return value.__name__.split(".")[-1] if hasattr(value, "main") else None


def save_model(folder: Path, **config) -> Path:
    """A GPT-2 of one layer with context 24 and a tokenizer of 300 tokens; `config` may make them
    differ.
    """
    tokenizer = train_bpe(Dataset.from_dict({"text": LINES}), 300)
    shape = {
        "vocab_size": len(tokenizer),
        "n_layer": 1,
        "n_head": 2,
        "n_embd": 32,
        "n_positions": 24,
    }
    GPT2LMHeadModel(GPT2Config(**shape | config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edit_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def remove_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def make_bert(folder: Path) -> None:
    tiny = BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    (folder / "config.json").write_text(json.dumps(tiny.to_dict() | {"model_type": "bert"}))


def halve_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


# Ways in which a copy of a saved model is none.
SPOIL = {
    "no_config": lambda folder: (folder / "config.json").unlink(),
    "no_weights": lambda folder: (folder / "model.safetensors").unlink(),
    "half": halve_weights,
    "junk": lambda folder: (folder / "model.safetensors").write_bytes(bytes(range(256)) * 8),
    "not_json": lambda folder: (folder / "config.json").write_text("{"),
    "no_tokenizer": remove_tokenizer,
    "deeper": lambda folder: edit_config(folder, n_layer=2),  # upstream draws the second at random
    "wider": lambda folder: edit_config(folder, n_embd=64),
    "bert": make_bert,
}


@pytest.fixture(scope="module")
def saved_models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    model = save_model(folder / "model")
    save_model(folder / "few", vocab_size=100)
    for name, spoil in SPOIL.items():
        shutil.copytree(model, folder / name)
        spoil(folder / name)
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch, saved_models):
    """The working folder: a good text and links to the models."""
    monkeypatch.chdir(tmp_path)
    Path("good.txt").write_text("\n".join(LINES))
    for path in saved_models.iterdir():
        Path(path.name).symlink_to(path)
    return tmp_path


@pytest.fixture
def refused(place):
    """refused(recipe, "--flag", ..., match=...): it raises InputError, in one line, and changes no
    file.
    """

    def refused(recipe, *words, match):
        before = contents(place)
        with pytest.raises(InputError, match=match) as caught:
            recipe.main(command(recipe, *words))
        assert "\n" not in str(caught.value)
        assert contents(place) == before
        return str(caught.value)

    return refused


def command(recipe, *words: str, source: str = "good.txt") -> list[str]:
    takes_text = recipe is not generate and "--source" not in words
    model = (
        ["--model", "model"] if recipe is score and "--model" not in words else []
    )  # again: one more model
    return [*BASE[recipe], *(["--source", source] if takes_text else []), *model, *words]


def contents(folder: Path) -> dict[str, bytes]:
    """What lies in a folder but for locks, which a run holds until its process ends."""
    return {
        str(path): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
        if path.name != LOCK
    }


# ---- arguments


@pytest.mark.parametrize("recipe", BASE, ids=name_of)
def test_unknown_names_and_wrong_values(refused, recipe):
    refused(recipe, "--sed", "3", match=r"^command line: unknown name --sed; did you mean seed\?$")
    refused(recipe, "--seed", "three", match="^command line: --seed: got 'three', expected int$")
    Path("c.yaml").write_text("seed: 1\nsed: 2\n")
    refused(
        recipe, "--config", "c.yaml", match=r"^c\.yaml:2: unknown name sed; did you mean seed\?$"
    )
    Path("c.yaml").write_text("seed: 1.5\n")
    refused(recipe, "--config", "c.yaml", match=r"^c\.yaml:1: seed: got 1.5, expected int$")
    refused(recipe, "--config", "missing.yaml", match=r"^--config missing\.yaml: no such file")
    Path("c.yaml").write_text("")
    refused(recipe, "--config", "c.yaml", match="^c.yaml: holds no")


@pytest.mark.parametrize("recipe", [pretrain, quickstart], ids=name_of)
@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("--per_device_train_batch_size 0", "per_device_train_batch_size: got 0"),
        ("--per_device_eval_batch_size -1", "per_device_eval_batch_size: got -1"),
        ("--gradient_accumulation_steps 0", "gradient_accumulation_steps: got 0"),
        ("--num_train_epochs 0", "num_train_epochs: got 0"),
        ("--max_steps 0", "max_steps: got 0"),
        ("--save_strategy steps --save_steps 0", "save_steps: got 0"),
        ("--eval_strategy steps --eval_steps 0", "eval_steps: got 0"),
        ("--learning_rate -1", "--learning_rate: got .-1., expected 0 to 1000"),
        ("--adam_beta2 1.0", "--adam_beta2: got '1.0', expected 0 to 0.999999999"),
        ("--weight_decay -0.1", "--weight_decay: got .-0.1., expected 0 to 1000"),
        ("--warmup_steps -1", "warmup_steps >= 0"),
        ("--seed -1", "--seed: got '-1', expected 0 to 4294967295"),
        ("--seed 4294967296", "--seed: got '4294967296', expected 0 to 4294967295"),
        ("--data_seed 1e20", "--data_seed: got '1e20', expected int or null"),
        ("--lr_scheduler_type warmup_stable_decay", "num_decay_steps"),
        ('--lr_scheduler_kwargs {"min_rl":0}', "min_rl"),
        (
            "--optim schedule_free_adamw",
            "optim: schedule_free_adamw saves other weights in its checkpoints than are evaluated",
        ),
        (
            '--lr_scheduler_type warmup_stable_decay --lr_scheduler_kwargs {"num_decay_steps":0.2}',
            "lr_scheduler_kwargs: num_decay_steps: got 0.2, expected whole steps",
        ),
        (
            "--lr_scheduler_type warmup_stable_decay --max_steps 20 --warmup_steps 0.1 "
            '--lr_scheduler_kwargs {"num_decay_steps":19}',
            "num_decay_steps: got 19, but the run has max_steps 20, of which 2 come before",
        ),
        (
            "--lr_scheduler_type cosine_with_min_lr --learning_rate 1e-3 "
            '--lr_scheduler_kwargs {"min_lr":0.1}',
            "lr_scheduler_kwargs: min_lr: got 0.1, expected from 0 to below 0.001",
        ),
        (
            "--lr_scheduler_type cosine_with_min_lr --learning_rate 0 "
            '--lr_scheduler_kwargs {"min_lr":0}',
            "lr_scheduler_kwargs: min_lr: got 0, expected from 0 to below 0",
        ),
        ("--report_to tensorbord", "report_to: tensorbord is unknown or not installed"),
        ("--fp16 --use_cpu", "fp16: a CPU"),
        ("--logging_steps -1", "logging_steps: got -1.0, expected more than 0"),
        ("--logging_steps 0", "logging_steps: got 0.0, expected more than 0"),
        ("--eval_accumulation_steps 0", "eval_accumulation_steps: got 0, expected more than 0"),
        ("--eval_delay -1", "--eval_delay: got '-1', expected at least 0"),
        ("--ddp_timeout 0", "--ddp_timeout: got '0', expected 1 to"),
        ("--max_steps -5", "max_steps: got -5, expected more than 0"),
        ("--max_steps 2 --warmup_steps 5", "warmup_steps: got 5, but the run has max_steps 2"),
        ("--max_steps 2 --warmup_steps 1e9", "warmup_steps: got 1e.09, but the run has"),
        ("--gradient_accumulation_steps 100000000000", "expected at most 10000000$"),
        ("--per_device_train_batch_size 100000000000", "expected at most 10000000$"),
        ("--per_device_eval_batch_size 100000000000", "expected at most 1000000$"),
        ("--adam_epsilon 0", "--adam_epsilon: got '0', expected 1e-30 to 1"),
        ("--adam_beta1 -1", "--adam_beta1: got '-1', expected 0 to 0.999999"),
        ("--neftune_noise_alpha -5", "--neftune_noise_alpha: got '-5', expected 0 to"),
        ("--neftune_noise_alpha 1e300", "--neftune_noise_alpha: got '1e300', expected 0 to"),
        ("--learning_rate inf", "--learning_rate: got 'inf', expected 0 to 1000"),
        ("--learning_rate 1e400", "--learning_rate: got '1e400', expected 0 to 1000"),
        ("--warmup_steps inf", "--warmup_steps: got 'inf', expected a finite number"),
        ("--warmup_steps nan", "--warmup_steps: got 'nan', expected float"),
        ("--log_level loud", "log_level: got 'loud', expected one of detail, debug"),
        ("--log_level_replica loud", "log_level_replica: got 'loud', expected one of"),
        ("--ddp_backend nope", "ddp_backend: got 'nope', expected one of nccl, gloo"),
        ("--train_sampling_strategy nope", "train_sampling_strategy: got 'nope', expected one of"),
        ("--dataloader_multiprocessing_context no", "context: got 'no', expected one of fork"),
        ("--include_for_metrics nope", "include_for_metrics: got 'nope', expected inputs or loss"),
        ("--torch_compile_backend nope", "torch_compile_backend: got 'nope', expected one of"),
        ("--torch_compile_mode nope", "torch_compile_mode: got 'nope', expected one of default"),
        ("--parallelism_config {tp_size:2}", "--parallelism_config is not taken: "),
        ("--accelerator_config {split_batches:maybe}", "split_batches|expected"),
        ("--accelerator_config nope.json", "No such file or directory: 'nope.json'"),
        ('--accelerator_config {"nope":1}', "unexpected keyword argument 'nope'"),
        ("--lr_scheduler_kwargs [1]", "lr_scheduler_kwargs: got .*, expected .name: value"),
        ('--lr_scheduler_kwargs {"a":1,"a":2}', "a is set twice; keep one of the two"),
        ('--lr_scheduler_kwargs {"a":NaN}', "NaN is no number of JSON; write a finite one"),
        (
            "--optim_args nope=1",
            "optim_args: adamw_torch reads none; its numbers are learning_rate",
        ),
        ("--optim adafactor --optim_args nope=1", "optim_args: adafactor reads none"),
        ("--optim galore_adamw", "need to install `galore_torch`"),
        ("--optim nope", "--optim: got 'nope', expected one of adamw_torch"),
        (
            '--gradient_checkpointing --gradient_checkpointing_kwargs {"nope":1}',
            "gradient_checkpointing_kwargs: unknown name nope; expected one of use_reentrant",
        ),
        ("--load_best_model_at_end", "save_strategy is no, so there is nothing to load"),
        ("--average_tokens_across_devices false", "would undo the exact mean over the tokens"),
    ],
)
def test_training_arguments_that_cannot_work(refused, recipe, words, match):
    """Said before any text is read: the run has not made its folder yet."""
    refused(recipe, *words.split(), "--source", "missing.txt", match=match)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("--num_hidden_layers 0", "--num_hidden_layers: got '0', expected 1 to 1000"),
        ("--num_attention_heads 3", "hidden_size 32 is not a multiple of num_attention_heads 3"),
        (
            "--architecture lama",
            "architecture lama: neither a file nor one of .*did you mean llama",
        ),
        (
            "--architecture llama --num_key_value_heads 4",
            "heads 2 is not a multiple of num_key_value",
        ),
        ("--architecture llama --model_config rms_norm_ep=1", "did you mean rms_norm_eps"),
        ("--model_config hidden_size=8", "hidden_size has an argument of its own: --hidden_size"),
        ("--n_layer 2", "unknown name --n_layer; did you mean num_hidden_layers"),
        ("--model_config resid_pdrop=1", "resid_pdrop: got 1, expected a number from 0 to below"),
        ("--tokenizer train", "expected train:<vocab size>"),
        ("--tokenizer train:257", "expected train:<vocab size>, at least 258"),
        ("--tokenizer train:many", "expected train:<vocab size>"),
        ("--tokenizer train:\u0663\u0660\u0660", "expected train:<vocab size>"),
        ("--tokenizer good.txt", "tokenizer good.txt: no such folder"),
        ("--tokenizer no_tokenizer", "tokenizer no_tokenizer: "),
        (
            "--validation_fraction 0",
            "validation_fraction: got 0.0, expected a number between 0 and 1",
        ),
        ("--validation_fraction 1", "validation_fraction: got 1.0"),
        ("--validation_source missing.txt", "source missing.txt: no such file"),
        (
            "--max_position_embeddings 100000000",
            "--max_position_embeddings: got '100000000', expected 1 to 10000000",
        ),
        ("--hidden_size 1000000000", "--hidden_size: got '1000000000', expected 1 to 1000000"),
        ("--hidden_size 1000000", "the weights alone take [0-9,]+ GiB, this machine has"),
        ("--num_proc 100000", "--num_proc: got '100000', expected 1 to 1000"),
        ("--tokenizer ~/missing", "tokenizer /.*/missing: no such folder"),
        ("--source ~/missing.txt", "source /.*/missing.txt: no such file"),
        ("--config ~/missing.yaml", "--config /.*/missing.yaml: no such file"),
        ("--source=~/missing.txt", "source /.*/missing.txt: no such file"),
    ],
)
def test_pretrain_values_that_cannot_work(refused, words, match):
    refused(pretrain, *words.split(), match=match)


# ---- text


def write_latin(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.txt").write_text("grüße\n" * 50, "utf-8")
    (folder / "b.txt").write_text("grüße\n" * 50, "latin-1")
    (folder / "c.txt").write_text("grüße\n" * 50, "utf-8")


def write_cut_parquet(path: Path) -> None:
    Dataset.from_dict({"text": LINES}).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])


def write_torn_parquet(path: Path) -> None:
    """The end, which says where everything is, is whole; the texts are not."""
    Dataset.from_dict({"text": LINES}).to_parquet(path)
    data = path.read_bytes()
    path.write_bytes(data[:40] + bytes(len(data[40:400])) + data[400:])


TEXTS = {  # source: (how to write it, what is said)
    "missing.txt": (None, "source missing.txt: no such file or folder"),
    "./missing": (None, r"source \./missing: no such file or folder"),
    "*.md": (None, r"source \*\.md: no such file or folder"),
    "": (None, "source : not a file or folder here"),
    "embedded:python-dos": (None, "unknown embedded text; there are embedded:python-docs"),
    "empty.txt": (lambda p: p.touch(), "source empty.txt: no text in it"),
    "blank.txt": (
        lambda p: p.write_text("\n \n\t\n\u00a0\u3000\n"),
        "source blank.txt: no text in it",
    ),
    "blank.jsonl": (
        lambda p: p.write_text('{"text": " "}\n' * 3),
        "source blank.jsonl: no text in it",
    ),
    "empty.jsonl": (lambda p: p.touch(), "source empty.jsonl: no text in it"),
    "empty.csv": (lambda p: p.write_text("text\n"), "source empty.csv: no text in it"),
    "empty.txt.gz": (
        lambda p: p.write_bytes(gzip.compress(b"")),
        "source empty.txt.gz: no text in it",
    ),
    "folder": (lambda p: p.mkdir(), "source folder: no file in this folder ends in .txt"),
    "nul.txt": (
        lambda p: p.write_bytes(b"text\0text"),
        r"nul\.txt:1: binary data \(a NUL byte at offset 4\)",
    ),
    "wide.txt": (lambda p: p.write_text("text", "utf-16"), r"wide\.txt:1: binary data"),
    "junk.bin": (
        lambda p: p.write_bytes(bytes(range(1, 256)) * 9),
        r"junk\.bin:2: not UTF-8 \(byte 0x80 at offset 117",
    ),
    "latin": (
        write_latin,
        r"latin/b\.txt:1: not UTF-8 \(byte 0xfc at offset 2\); convert it first",
    ),
    "latin.jsonl": (
        lambda p: p.write_bytes('{"text": "grüße"}\n'.encode("latin-1")),
        r"latin\.jsonl:1: not UTF-8 \(byte 0xfc at offset 12\)",
    ),
    "latin.csv": (
        lambda p: p.write_text("text\ngrüße\n", "latin-1"),
        r"latin\.csv:2: not UTF-8 \(byte 0xfc at",
    ),
    "half.txt.gz": (
        lambda p: p.write_bytes(gzip.compress(b"text" * 99)[:-9]),
        r"half\.txt\.gz: cannot be read",
    ),
    "not.txt.gz": (
        lambda p: p.write_text("text"),
        r"not\.txt\.gz: cannot be read: zlib inflate failed",
    ),
    "not.txt.zst": (lambda p: p.write_text("text"), r"not\.txt\.zst: cannot be read: ZSTD"),
    "not.parquet": (
        lambda p: p.write_text("text" * 9),
        "source not.parquet: cannot be read: Parquet magic bytes",
    ),
    "cut.txt.zst": (
        lambda p: p.write_bytes(zstandard.compress(os.urandom(9999).hex().encode())[:-99]),
        r"cut\.txt\.zst: cannot be read: Truncated",
    ),
    "cut.jsonl.gz": (
        lambda p: p.write_bytes(gzip.compress(b'{"text": "cat"}\n' * 9999)[:-99]),
        r"cut\.jsonl\.gz: cannot be read: Truncated",
    ),
    "cut.csv.zst": (
        lambda p: p.write_bytes(
            zstandard.compress(b"text\n" + os.urandom(9999).hex().encode())[:-99]
        ),
        r"cut\.csv\.zst: cannot be read: Truncated",
    ),
    "cut.parquet": (write_cut_parquet, r"source cut\.parquet: cannot be read: Parquet magic bytes"),
    "torn.parquet": (write_torn_parquet, r"source torn\.parquet: cannot be read"),
    "broken.jsonl": (
        lambda p: p.write_text('{"text": "a"}\n{"text": \n'),
        r"broken\.jsonl:2: not JSON \(Expecting value at column 10\); mend or remove the line; "
        "--on_error skip leaves it out",
    ),
    "broken.json": (
        lambda p: p.write_text('[{"text": "a"}, {"text": '),
        r"broken\.json:1: not JSON",
    ),
    "ragged.csv": (
        lambda p: p.write_text("text,n\na,1\nb,2,3\n"),
        r"ragged\.csv:3: 3 fields, but the header has 2 \(text, n\); write a text that holds a "
        r"comma in",
    ),
    "comma.csv": (
        lambda p: p.write_text("text\nYes\nHello, my name is Anna\n"),
        r"comma\.csv:3: 2 fields, but the header has 1 \(text\)",
    ),
    "short.tsv": (
        lambda p: p.write_text("text\tn\na\n"),
        r"short\.tsv:2: 1 field, but the header has 2 .* a tab",
    ),
    "short.CSV.GZ": (
        lambda p: p.write_bytes(gzip.compress(b"text,n\na,1\n\nb\n")),
        r"short\.CSV\.GZ:4: 1 field, but",
    ),
    "quote.csv": (
        lambda p: p.write_text('text,n\na,1\n"b,2\nc,3\n'),
        r"quote\.csv:3: a quote is never closed",
    ),
    "inner.csv": (
        lambda p: p.write_text('text,n\n"a" b,1\nc,3\n'),
        r"inner\.csv:2: text goes on after its closing",
    ),
    "twice.csv": (
        lambda p: p.write_text("text,text\na,b\n"),
        r"twice\.csv:1: the header names .*'text' twice",
    ),
    "latin.html": (
        lambda p: p.write_text("<html><p>grüße</p></html>", "latin-1"),
        r"latin\.html: not UTF-8",
    ),
    "blank.html": (
        lambda p: p.write_text("<html><body></body></html>"),
        "source blank.html: no text in it",
    ),
    "broken.ndjson": (
        lambda p: p.write_text('{"text": "a"}\n{"text"\n'),
        r"broken\.ndjson:2: not JSON",
    ),
    "lines.json": (
        lambda p: p.write_text('{"text": "a"}\n{"txt": "a"}\n'),
        r"lines\.json:2: no column 'text'; it",
    ),
    "deep.json": (
        lambda p: p.write_text("[" * 100_000),
        r"deep\.json:1: not JSON that can be read \(maximum rec",
    ),
    "some.pdf": (
        lambda p: p.write_bytes(b"%PDF\xe2\xe3"),
        r"some\.pdf:1: not UTF-8 .*; its ending is not known",
    ),
    "nul.jsonl": (
        lambda p: p.write_bytes(b'{"text": "a"}\n{"text": "\0"}\n'),
        r"nul\.jsonl:2: binary data \(a NUL",
    ),
    "half.jsonl": (
        lambda p: p.write_text('{"text": "\\ud800"}\n'),
        r"half\.jsonl:1: cannot be read: .*surrogates",
    ),
    "list.jsonl": (
        lambda p: p.write_text('["a"]\n'),
        r"list\.jsonl:1: no column 'text'; it has none",
    ),
    "column.jsonl": (
        lambda p: p.write_text('{"txt": "a"}\n'),
        r"no column 'text'; it has txt \(choose with",
    ),
    "number.jsonl": (
        lambda p: p.write_text('{"text": 3}\n'),
        r"number\.jsonl:1: column 'text' holds int, not text",
    ),
    "some-name": (
        None,
        r"source some-name: not a file .* \(the Hub is not reachable\); offline there are",
    ),
    "some/name": (
        None,
        r"source some/name: not a file .* \(the Hub is not reachable\); offline there are",
    ),
}


@pytest.mark.parametrize("recipe", [pretrain, quickstart, score], ids=name_of)
@pytest.mark.parametrize("source", TEXTS)
def test_text_that_is_none(refused, recipe, source):
    write, match = TEXTS[source]
    if write:
        write(Path(source))
    refused(recipe, "--source", source, match=match)


@pytest.mark.parametrize("recipe", [pretrain, quickstart], ids=name_of)
def test_text_shorter_than_one_row(refused, recipe):
    Path("good.txt").write_text("a b\nc\nd\n")
    refused(
        recipe,
        match="the training text holds [0-9]+ tokens, fewer than one row of 16; give more text or",
    )


# ---- models

SPOILT = {  # name: what is said
    "no_config": "this folder holds no config.json, so it is not a saved model",
    "no_weights": "cannot be loaded: .*no file named model.safetensors",
    "half": "cannot be loaded: .*safetensors|cannot be loaded: .*header|cannot be loaded: "
    ".*incomplete",
    "junk": "cannot be loaded: .*header",
    "not_json": "cannot be loaded: .*not a valid JSON",
    "no_tokenizer": "tokenizer no_tokenizer: ",
    "deeper": r"do not hold 12 of the weights that its config.json describes, such as "
    r"transformer\.h\.1\.",
    "wider": "do not hold [0-9]+ of the weights",
    "bert": "do not hold [0-9]+ of the weights .* such as bert",
}


@pytest.mark.parametrize("recipe", [quickstart, score, generate], ids=name_of)
@pytest.mark.parametrize("name", SPOILT)
def test_folder_that_is_not_a_model(refused, recipe, name):
    refused(
        recipe,
        "--model",
        name,
        match=f"^(model|tokenizer) {name}: .*" + f"({SPOILT[name].split(': ', 1)[-1]})",
    )


@pytest.mark.parametrize("recipe", [quickstart, score, generate], ids=name_of)
@pytest.mark.parametrize("name", ["gpt2", "some/model", "./missing", "good.txt"])
def test_model_that_is_nowhere(refused, recipe, name):
    said = refused(recipe, "--model", name, match=f"^model {re.escape(name)}: cannot be loaded: ")
    assert (
        "no such folder, not in the Hub cache, and the Hub is not reachable; give a saved model's "
        "folder" in said
    )


@pytest.mark.parametrize("name", ["gpt2", "some/tokenizer", "./missing"])
def test_tokenizer_that_is_nowhere(refused, name):
    said = refused(
        pretrain, "--tokenizer", name, match=f"^tokenizer {re.escape(name)}: no such folder"
    )
    assert (
        "not in the Hub cache; give train:8192, char, a saved tokenizer folder or a Hub id" in said
    )


def test_a_run_that_was_cut_short_names_its_checkpoint(refused):
    shutil.copytree("model", "run/checkpoint-2")
    refused(
        score,
        "--model",
        "run",
        match="no config.json.*; the last checkpoint in it is run/checkpoint-2$",
    )


# ---- lengths and token ids


@pytest.mark.parametrize(
    ("recipe", "words", "match"),
    [
        (
            pretrain,
            "--max_length 17",
            "max_length 17 is beyond the model's max_position_embeddings 16",
        ),
        (pretrain, "--max_length 1", "max_length: got .1., expected at least 2"),
        (pretrain, "--max_length 0", "max_length: got .0., expected at least 2"),
        (pretrain, "--max_position_embeddings 1", "max_length: got 1"),
        (
            quickstart,
            "--model model --max_length 25",
            "max_length 25 is beyond the model's context of 24 tokens",
        ),
        (quickstart, "--max_length 0", "max_length: got '0', expected at least 2"),
        (quickstart, "--weight_averaging ema", "unknown name --weight_averaging"),
        (score, "--max_length 25", "max_length: got 25, .*1 to 24"),
        (score, "--max_length 0", "max_length: got '0', expected at least 1"),
        (score, "--max_length 8 --stride 9", "stride: got 9"),
    ],
    ids=name_of,
)
def test_context_longer_than_the_models(refused, recipe, words, match):
    refused(recipe, *words.split(), match=match)


@pytest.mark.parametrize(
    ("recipe", "words", "match"),
    [
        (score, "--model model", "model: model is named twice; keep one"),
        (score, "--stride 0", "--stride: got '0', expected at least 1"),
        (pretrain, "--shuffle_buffer_size 100000000000", "expected 0 to 100000000"),
        (score, "--split nope", "split nope: source .* has no splits, only saved and Hub"),
        (score, "--batch_size 0", "--batch_size: got '0', expected at least 1"),
        (generate, "--temperature inf", "--temperature: got 'inf', expected 1e-06 to"),
        (generate, "--top_p nan", "--top_p: got 'nan', expected float"),
        (generate, "--num_return_sequences 100000000", "expected 1 to 100000"),
        (generate, "--prompts", "--prompts: got '', expected list of str"),
        (prepare_data, "--min_words -1", "--min_words: got '-1', expected at least 0"),
        (prepare_data, "--max_duplicate_line_share 2", "got '2', expected 0 to 1"),
        (prepare_data, "--max_top_2gram_share -0.1", "got '-0.1', expected 0 to 1"),
    ],
)
def test_numbers_that_mean_nothing(place, recipe, words, match):
    before = contents(place)
    argv = command(recipe, *words.split()) if recipe in BASE else words.split()
    if words == "--model model":
        argv += words.split()
    with pytest.raises(InputError, match=match):
        recipe.main(argv)
    assert contents(place) == before


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: &a [1, 2]\nb: *a\n", r"^c\.yaml:2: an alias \(\*\) is not read; write the value out"),
        ("source: " + "[" * 20_000, r"^c\.yaml:1: more than 50 lists or mappings within"),
        ("peft_kwargs: " + "{a: " * 3000, r"^c\.yaml:1: more than 50 lists or mappings within"),
        ("lr_scheduler_kwargs:\n  a: 1\n  b: {c: 1, c: 2}\n", r"^c\.yaml:3: c is set twice; keep"),
        ("seed: 1\n" * 70_000, r"^c\.yaml: 560,000 bytes, of which at most 500,000 are read"),
        ("lr_scheduler_kwargs: {a: .nan}\n", "nan is no number that a record can hold"),
        ("lr_scheduler_kwargs: {a: .inf}\n", "inf is no number that a record can hold"),
        ("seed: 2001-99-99\n", r"^c\.yaml: not readable as YAML: month must be in"),
        ("seed: " + "9" * 9000, r"^c\.yaml: not readable as YAML: Exceeds the limit"),
        ("? [a, b]\n: 1\n", r"^c\.yaml:1: unknown name \['a', 'b'\]"),
        ("seed: !!python/object/apply:os.system ['id']\n", "could not determine a constructor"),
        ("seed: 'a\x1bb'\n", r"^c\.yaml: not readable as YAML: unacceptable character"),
        ("extends: [~/missing.yaml]\n", r"^c\.yaml:1: extends: '/.*/missing.yaml' is not another"),
    ],
)
def test_yaml_beyond_its_limits(refused, text, match):
    Path("c.yaml").write_text(text)
    refused(pretrain, "--config", "c.yaml", match=match)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes"
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_is_one_line(error, capsys):
    def fail():
        raise error

    with pytest.raises(SystemExit) as stop:
        run(fail)
    said = capsys.readouterr().err
    assert stop.value.code == 1
    assert said.startswith("error: out of memory") and said.count("\n") == 1
    with pytest.raises(RuntimeError, match="^another$"):
        error = RuntimeError("another")
        run(fail)


def test_prompt_longer_than_the_context(refused):
    refused(
        generate,
        "--prompts",
        "a " * 30,
        match="prompt 1: [0-9]+ tokens leave no room in the model's context",
    )


@pytest.mark.parametrize("recipe", [quickstart, score, generate], ids=name_of)
def test_token_id_outside_the_vocabulary(refused, recipe):
    refused(recipe, "--model", "few", match="token id [0-9]+ .*outside the .*vocabulary of 100")


def test_tokenizer_with_ids_beyond_its_size(refused):
    gaps = {"<|endoftext|>": 0} | {c: 2 * i + 7 for i, c in enumerate(sorted(set("".join(LINES))))}
    tokenizer = Tokenizer(models.WordLevel(gaps, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(
        "gaps"
    )
    refused(
        pretrain,
        "--tokenizer",
        "gaps",
        match=f"token id [0-9]+ is outside the vocabulary of {len(gaps)}",
    )


# ---- the output folder


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    (folder / "good.txt").write_text("\n".join(LINES))
    words = command(pretrain, "--save_strategy", "steps", "--save_steps", "2")
    pretrain.main([str(folder / word) if word in ("good.txt", "out") else word for word in words])
    return folder / "out"


@pytest.mark.parametrize("recipe", [pretrain, quickstart], ids=name_of)
@pytest.mark.parametrize("kept", ["everything", "checkpoint-2", "training_args.bin"])
def test_output_dir_holds_another_run(refused, finished_run, recipe, kept):
    """Also one that was cut short, whose folder holds less."""
    ignore = (
        None
        if kept == "everything"
        else lambda folder, names: set(names) - {kept} if Path(folder) == finished_run else set()
    )
    shutil.copytree(finished_run, "out", ignore=ignore)
    ways = (
        "--resume auto continues it, " * (recipe is pretrain)
        + "--overwrite deletes it, or name another folder"
    )
    refused(recipe, match=f"^output_dir out: holds a run; {ways}$")


@pytest.mark.parametrize("recipe", [pretrain, quickstart], ids=name_of)
def test_an_earlier_run_is_only_deleted_once_all_else_is_right(refused, finished_run, recipe):
    shutil.copytree(finished_run, "out")
    refused(recipe, "--overwrite", "--max_length", "1", match="max_length")
    refused(recipe, "--overwrite", "--learning_rate", "-1", match="learning_rate")
    Path("good.txt").write_text("\n")
    refused(recipe, "--overwrite", match="no text in it")


def test_overwrite_replaces_and_resume_continues(place, finished_run):
    shutil.copytree(finished_run, "out")
    Path("out/notes.txt").write_text("mine")
    pretrain.main(
        command(pretrain, "--resume", "auto")
    )  # done already: nothing is trained, nothing is lost
    assert Path("out/notes.txt").is_file() and Path("out/checkpoint-2").is_dir()
    Path("out/notes.txt").rename("notes.txt")  # with it, --overwrite refuses
    pretrain.main(command(pretrain, "--overwrite"))
    assert Path("out/run.json").is_file() and not Path("out/checkpoint-2").exists()


def test_resume_and_overwrite_contradict_each_other(refused, finished_run):
    shutil.copytree(finished_run, "out")
    refused(pretrain, "--resume", "auto", "--overwrite", match="give one of the two")


@pytest.mark.parametrize("words", [[], ["--overwrite"], ["--resume", "auto"]], ids=" ".join)
@pytest.mark.parametrize("file", ["notes.txt", "config.json", "runs/other/model.safetensors"])
def test_output_dir_holds_what_is_no_run(refused, words, file):
    Path("out", file).parent.mkdir(parents=True)
    Path("out", file).write_text("mine")
    refused(
        pretrain,
        *words,
        match="^output_dir out: holds files that are no training run; name an empty folder$",
    )


def test_a_run_that_only_logged_yet_may_be_replaced(refused, place):
    logs = Path("out/runs/Jan01_host/events.out.tfevents.1.host")
    logs.parent.mkdir(parents=True)
    logs.touch()
    refused(pretrain, match="^output_dir out: holds a run")
    pretrain.main(command(pretrain, "--overwrite"))
    assert not logs.exists() and Path("out/run.json").is_file()


@pytest.mark.parametrize("recipe", [pretrain, quickstart], ids=name_of)
def test_output_dir_that_cannot_be_a_folder(refused, recipe):
    refused(recipe, "--output_dir", "good.txt", match="output_dir good.txt: .* not a folder")
    refused(
        recipe,
        "--output_dir",
        "good.txt/out",
        match="output_dir good.txt/out: .*good.txt is not a folder",
    )


WRITERS = {
    pretrain: [],
    quickstart: [],
    train_tokenizer: ["--vocab_size", "300"],
    attention_maps: ["--model", "model"],
    memorization: ["--model", "model"],
    bias_probe: ["--model", "model"],
    distill: ["--teacher_model_name_or_path", "model"],
    finetune: ["--model", "model"],
    score: ["--model", "model"],
    compare: ["--config", "tiny_cpu"],
    scale: ["--config", "tiny_cpu"],
    prepare_data: [],
    finetune_task: ["--task_source", "embedded:arithmetic"],
    finetune_preference: ["--model", "model"],
    finetune_picture: [],
    finetune_reward: ["--model", "model", "--task_source", "embedded:sums"],
    prepare_data_cluster: [],
}


@pytest.mark.parametrize("recipe", WRITERS, ids=name_of)
@pytest.mark.parametrize(
    ("folder", "match"),
    [
        ("good.txt", "output_dir good.txt: .*(not a folder that can be written to|exists)"),
        ("/proc/x/y", "output_dir /proc/x/y: cannot be written .*; name another place$"),
        (
            "/proc/sys/new",
            "output_dir /proc/sys/new: .*/proc/sys is not a folder that can be written to$",
        ),
        (
            "x" * 300,
            "output_dir x{300}: cannot be written .File name too long.; name another place$",
        ),
        (
            "x/" + "y" * 300 + "/z",
            "output_dir x/y{300}/z: cannot be written .File name too long.; name another place$",
        ),
        (
            "gone",
            "output_dir gone: .*gone is a link to not-there, which is not there; name another "
            "place$",
        ),
        (
            "gone/below",
            "output_dir gone/below: .*gone is a link to not-there, which is not there; name "
            "another place$",
        ),
    ],
)
def test_output_dir_that_cannot_be_made(place, recipe, folder, match):
    """Said before any text is read or model loaded."""
    Path("gone").symlink_to("not-there")
    words = [*WRITERS[recipe], "--output_dir", folder]
    reads = (pretrain, quickstart, train_tokenizer, finetune, score, prepare_data)
    source = ["--source", "missing.txt"] if recipe in reads else []
    before = contents(Path.cwd())
    with pytest.raises(InputError, match=match) as caught:
        recipe.main([*words, *source])
    assert "\n" not in str(caught.value) and contents(Path.cwd()) == before


# ---- as the user meets it

COMMANDS = [
    (
        pretrain,
        "--learning_rat 1",
        "command line: unknown name --learning_rat; did you mean learning_rate?",
    ),
    (
        quickstart,
        "--source broken.json",
        "{place}/broken.json:2: not JSON (Expecting value at column 1); mend",
    ),
    (
        score,
        "--model some/model",
        "model some/model: cannot be loaded: no such folder, not in the Hub cache, and the Hub is "
        "not reachable; give a saved model's folder",
    ),
]


@pytest.mark.slow
def test_one_line_and_status_2(place):
    Path("broken.json").write_text('{"text": \n')
    before = contents(place)
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_ENDPOINT": "http://127.0.0.1:1",
    }
    for name in (
        "HF_HUB_OFFLINE",
        "HF_DATASETS_OFFLINE",
        "HF_EVALUATE_OFFLINE",
    ):  # they must find out by themselves
        del env[name]
    started = [
        subprocess.Popen(
            [sys.executable, recipe.__file__, *words.split()],
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for recipe, words, _ in COMMANDS
    ]
    bar = re.compile(
        r"^$|\d+ examples \[|\d+/\d+ \["
    )  # `datasets` shows one for each step on the way
    for process, (_, words, message) in zip(started, COMMANDS, strict=True):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 2, (words, err)
        lines = [line for line in err.splitlines() if not bar.search(line)]
        assert len(lines) == 1 and lines[0].startswith(f"error: {message.format(place=place)}"), err
        assert "Traceback" not in out + err
    assert contents(place) == before

"""Training from a stream: which rows come, on which rank, in which order, and again after a
stop.
"""

import json
import os
import shutil
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.utils.data import DataLoader

from hfscale.arguments import StreamArguments
from hfscale.data.fingerprints import text_fingerprint
from hfscale.data.mixture import check_shares, join_rows
from hfscale.data.packing import IGNORED, pack_documents
from hfscale.data.sources import load_documents
from hfscale.data.splits import load_parts, split_documents
from hfscale.data.tokenizer import load_pretrained_tokenizer, load_tokenizer, train_char
from hfscale.process import InputError, run
from recipes import pretrain, score

LAUNCHED = Path(__file__).parents[1].joinpath("launched_stream.py")
TINY = [
    "--num_hidden_layers",
    "1",
    "--num_attention_heads",
    "2",
    "--hidden_size",
    "32",
    "--max_position_embeddings",
    "16",
    "--tokenizer",
    "char",
    "--per_device_train_batch_size",
    "2",
    "--report_to",
    "none",
    "--disable_tqdm",
    "--logging_steps",
    "1",
    "--save_steps",
    "4",
    "--max_steps",
    "8",
    "--bf16",
    "false",
]


@pytest.fixture(scope="module")
def documents():
    """100 documents; document i repeats one character of its own, so a token names its document."""
    return Dataset.from_dict({"text": [chr(0x4E00 + i) * (1 + i * 7 % 13) for i in range(100)]})


@pytest.fixture
def rows(documents, monkeypatch):
    """rows(shards, buffer): packed in batches of 7 documents, and made endless as the recipe
    does.
    """
    monkeypatch.setattr("hfscale.data.packing.BATCH_DOCUMENTS", 7)
    tokenizer = train_char(documents)

    def rows(num_shards, shuffle_buffer_size=8):
        stream = pack_documents(documents.to_iterable_dataset(num_shards=num_shards), tokenizer, 16)
        part = {"train": stream, "validation": Dataset.from_dict({"text": ["x"]})}
        args = StreamArguments(streaming=True, shuffle_buffer_size=shuffle_buffer_size)
        return stream, join_rows([part], args, seed=1)[0]["train"]

    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """8 files of JSON lines, two sources: 6 of words, 2 of digits."""
    folder = tmp_path_factory.mktemp("lines")
    for k in range(8):
        texts = [f"{'word' if k < 6 else '0123'} {k * 31 + i} " * (2 + i % 5) for i in range(30)]
        name = f"{'words' if k < 6 else 'digits'}-{k}.jsonl"
        (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


def targets(batch):
    """Of each row. Every token of the text and every EOS is a target once, however rows are cut."""
    return [tuple(label for label in row["labels"][1:] if label != IGNORED) for row in batch]


def of_rank(stream, rank, workers=0, world_size=2):
    """Batches of 2 rows as Trainer's loader gives them to one rank: accelerate's own sharding."""
    loader = DataLoader(stream, batch_size=2, num_workers=workers, collate_fn=targets)
    return prepare_data_loader(
        loader, num_processes=world_size, process_index=rank, dispatch_batches=False
    )


def one_pass(seen):
    """What comes before the sequence begins anew."""
    period = next(n for n in range(1, len(seen)) if seen[n : n + 6] == seen[:6])
    assert seen[:period] == seen[period : 2 * period]  # the same order again
    return seen[:period]


@pytest.mark.parametrize("num_shards", [2, 3, 5])
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_workers_read_their_own_shards_once_a_pass(documents, rows, num_shards, workers):
    finite, endless = rows(num_shards)
    seen = Counter()
    for rank in range(2):
        batches = list(islice(of_rank(endless, rank, workers), 120))
        lanes = [batches] if workers == 0 else [batches[0::2], batches[1::2]]  # workers take turns
        if workers and finite.shard(num_shards=2, index=rank).num_shards < 2:
            lanes = [batches]  # one shard is not shared out: the second worker has nothing to do
        for lane in lanes:
            seen.update(token for row in one_pass(sum(lane, [])) for token in row)
    assert seen == Counter(token for row in targets(finite) for token in row)
    assert sum(seen.values()) == sum(len(text) + 1 for text in documents["text"])


def test_a_process_without_a_document_is_named(tmp_path):
    for i, text in enumerate(("one", "two", " ", "four")):
        (tmp_path / f"{i}.txt").write_text(text)
    documents = load_documents(str(tmp_path), streaming=True)
    check_shares(documents, 1)
    check_shares(documents, 2)
    with pytest.raises(InputError, match="process 2 of 4 would find no document"):
        check_shares(documents, 4)
    check_shares(documents, 5)  # fewer files than processes: each reads all of them


def test_one_shard_is_dealt_out_in_order(rows):
    """Fewer shards than ranks: every rank reads all and takes its share, batch by batch."""
    _, endless = rows(1)
    dealt = [
        batch
        for pair in zip(*(islice(of_rank(endless, rank), 30) for rank in range(2)), strict=True)
        for batch in pair
    ]
    assert sum(dealt, []) == targets(islice(endless, 120))


def test_a_pass_without_a_buffer_is_in_order(rows):
    finite, endless = rows(3, shuffle_buffer_size=0)
    expected = targets(finite)
    assert targets(islice(endless, 2 * len(expected))) == expected * 2
    shuffled = targets(islice(rows(3)[1], len(expected)))
    assert shuffled != expected and sorted(shuffled) != expected


def test_the_split_of_a_stream(folder):
    texts = load_documents(str(folder))["text"][:]
    parts = split_documents(
        load_documents(str(folder), streaming=True),
        split_by="document",
        validation_fraction=0.1,
        seed=0,
    )
    train, held_out = [row["text"] for row in parts["train"]], parts["validation"]["text"][:]
    assert sorted(train + held_out) == sorted(texts)
    assert 0.04 < len(held_out) / len(texts) < 0.16
    assert [
        text for text in texts if text in set(held_out)
    ] == held_out  # order kept, copies on one side
    other = split_documents(
        load_documents(str(folder), streaming=True),
        split_by="document",
        validation_fraction=0.1,
        seed=1,
    )
    assert other["validation"]["text"][:] != held_out


def test_held_out_text_of_a_stream_is_bounded(folder, monkeypatch):
    monkeypatch.setattr("hfscale.data.stream_splits.HELD_OUT_CHARACTERS", 100)
    parts = split_documents(
        load_documents(str(folder), streaming=True),
        split_by="document",
        validation_fraction=0.3,
        seed=0,
    )
    sizes = [len(text) for text in parts["validation"]["text"]]
    assert sum(sizes) >= 100 > sum(sizes[:-1])


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet", "txt", "jsonl.gz", "saved"])
def test_a_stream_of_any_source_is_the_same_text(tmp_path, suffix):
    data = Dataset.from_dict({"text": ["one", " ", "two – ö", "three"], "n": [1, 2, 3, 4]})
    path = tmp_path / f"x.{suffix}"
    if suffix == "txt":
        path.write_text("one\n \ntwo – ö\nthree\n")
    elif suffix == "saved":
        data.save_to_disk(path)
    else:
        name = suffix.partition(".")[0]
        getattr(data, f"to_{name.removesuffix('l')}")(
            path, **{"compression": "gzip"} if ".gz" in suffix else {}
        )
        if suffix == "json":
            path.write_text(json.dumps(data.to_list()))
    how = {"sample_by": "line"}
    stream = load_documents(str(path), streaming=True, **how)
    assert [row["text"] for row in stream] == ["one", "two – ö", "three"]
    assert text_fingerprint(stream) == text_fingerprint(load_documents(str(path), **how))
    if suffix not in ("txt", "saved"):
        with pytest.raises(InputError, match="no column 'body'; it has text, n"):
            list(load_documents(str(path), text_column="body", streaming=True))


def test_a_tokenizer_from_a_stream_is_the_one_from_the_same_text(folder):
    stored, stream = (
        load_documents(str(folder), streaming=streaming) for streaming in (False, True)
    )
    for spec in ("train:300", "char"):
        assert load_tokenizer(spec, stream).get_vocab() == load_tokenizer(spec, stored).get_vocab()


# ---- the recipe


def losses(run: Path) -> list[float]:
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


HOW = {
    "buffer": ["--shuffle_buffer_size", "16"],
    "ordered": ["--shuffle_buffer_size", "0"],
    "workers": ["--shuffle_buffer_size", "16", "--dataloader_num_workers", "2"],
    "second pass": ["--shuffle_buffer_size", "4", "--per_device_train_batch_size", "64"],
    "mixture": ["--source_weights", "0.5", "0.5", "--gradient_accumulation_steps", "2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_a_resumed_run_sees_the_same_rows(folder, tmp_path, how):
    argv = [
        "--source",
        f"{folder}/words*",
        f"{folder}/digits*",
        "--streaming",
        *TINY,
        *HOW[how],
        "--output_dir",
    ]
    pretrain.main([*argv, str(tmp_path / "whole")])
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for name in ("run.json", "model.safetensors", "checkpoint-8"):
        path = tmp_path / "resumed" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    pretrain.main([*argv, str(tmp_path / "resumed"), "--resume", "auto"])
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")
    assert len(set(losses(tmp_path / "whole"))) == 8
    weights = [
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed")
    ]
    assert weights[0] == weights[1]


def test_run_json_of_a_stream_and_its_held_out_text(folder, tmp_path, capsys):
    argv = ["--source", str(folder), "--streaming", *TINY]
    pretrain.main([*argv, "--output_dir", str(tmp_path / "none"), "--dry_run"])
    assert "steps" in (shown := capsys.readouterr().out) and "train tokens scored" not in shown
    pretrain.main([*argv, "--output_dir", str(tmp_path / "run")])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["documents"]["train"] is record["data"]["tokens"]["train"] is None
    assert record["data"]["dropped"] is None and record["data"]["documents"]["validation"] > 0
    assert record["data"]["tokens"]["validation"] == record["metrics"]["eval_tokens"]
    assert record["train"]["tokens"] == 8 * 2 * 16
    score.main(
        ["--model", str(tmp_path / "run"), "--output_dir", str(tmp_path / "scores")]
    )  # finds the same text


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (
            "--max_steps -1 --num_train_epochs 2",
            r"set --max_steps to the tokens to train on divided by 32, the tokens",
        ),
        ("--split_by position", "split_by position: a stream has no last part"),
        (
            "--source_temperature 2",
            "source_temperature: not with --source_weights, and not with --streaming",
        ),
        ("--source_weights 1 2", r"source_weights: got \[1.0, 2.0\] for 1 source"),
        ("--source_weights 0", r"source_weights: got \[0.0\] for 1 source"),
        ("--validation_fraction 0.00001", "holds out none of the stream's documents"),
    ],
)
def test_streams_that_cannot_work(folder, tmp_path, words, match):
    with pytest.raises(InputError, match=match):
        pretrain.main(
            [
                "--source",
                str(folder),
                "--streaming",
                *TINY,
                "--output_dir",
                str(tmp_path / "run"),
                *words.split(),
            ]
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_broken_line_in_a_stream_stops_or_is_left_out(tmp_path, capfd, workers):
    lines = [json.dumps({"text": f"line {i}"}) for i in range(400)]
    lines[300] = '{"text": '
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    (tmp_path / "held.txt").write_text("line 1\n" * 20)
    train_char(Dataset.from_dict({"text": lines})).save_pretrained(tmp_path / "tokenizer")
    argv = [
        *TINY,
        "--streaming",
        "--source",
        str(tmp_path / "x.jsonl"),
        "--dataloader_num_workers",
        workers,
        "--validation_source",
        str(tmp_path / "held.txt"),
        "--output_dir",
        str(tmp_path / "run"),
    ]
    argv[argv.index("char")] = str(tmp_path / "tokenizer")
    with pytest.raises(SystemExit) as stop:
        run(lambda: pretrain.main([*argv, "--max_steps", "200"]))
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stop.value.code == 2 and len(said) == 1
    assert (
        "x.jsonl:301: not JSON (Expecting value at column 10); mend or remove the line" in said[0]
    )
    assert said[0].endswith("; --on_error skip leaves it out")
    pretrain.main([*argv, "--overwrite", "--on_error", "skip"])
    assert "left out: " in (shown := capfd.readouterr().err) and "x.jsonl:301: not JSON" in shown


def test_settings_that_change_the_rows_are_refused_at_a_resume(folder, tmp_path):
    argv = ["--source", str(folder), "--streaming", *TINY, "--output_dir", str(tmp_path / "run")]
    pretrain.main(argv)
    for words in ("--shuffle_buffer_size 7", "--dataloader_num_workers 2", "--max_length 8"):
        with pytest.raises(
            InputError, match=f"{words.split()[0][2:]} was .*, is {words.split()[1]}"
        ):
            pretrain.main([*argv, "--resume", "auto", *words.split()])


# ---- mixtures in memory


def test_a_mixture_of_two_sources(folder, tmp_path, capsys):
    argv = [
        "--source",
        f"{folder}/words*",
        f"{folder}/digits*",
        *TINY,
        "--output_dir",
        str(tmp_path / "run"),
    ]
    pretrain.main([*argv, "--source_weights", "1", "3"])
    shown = capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    alone = {}
    for source in record["data"]["source"]:  # the rows and the held-out text of each by itself
        args = pretrain.PretrainArguments(source=[source])
        [part] = load_parts(args, seed=42)
        tokenizer = load_pretrained_tokenizer(str(tmp_path / "run"))
        alone[source] = len(pack_documents(part["train"], tokenizer, 16)), len(part["validation"])
    size = sum(rows for rows, _ in alone.values())
    assert record["data"]["documents"]["validation"] == sum(
        held_out for _, held_out in alone.values()
    )
    for share, source in ((0.25, f"{folder}/words*"), (0.75, f"{folder}/digits*")):
        a_pass = round(share * size) / alone[source][0]
        assert (
            f"{source}: {share:.1%} of the training rows, {a_pass:.2f} epochs in each pass" in shown
        )
        assert record["data"]["epochs"][source] == pytest.approx(a_pass * 8 * 2 / size, rel=0.02)
    score.main(
        ["--model", str(tmp_path / "run"), "--output_dir", str(tmp_path / "scores")]
    )  # finds the same text


# ---- two processes


@pytest.mark.slow
@pytest.mark.parametrize(
    "files", ["*", "words-0*"], ids=["shards", "dealt"]
)  # 8 files: 4 for each rank; 1 for both
def test_two_ranks_share_a_stream_and_resume_it(folder, tmp_path, files, run_warm):
    def launch(run, *words):
        notes = tmp_path / f"notes-{run}{len(words)}"
        notes.mkdir()
        argv = [
            sys.executable,
            "-m",
            "hfscale.cli",
            str(LAUNCHED),
            "--accelerate",
            "cpu_2proc",
            "--streaming",
            *TINY,
            "--source",
            f"{folder}/{files}",
            "--output_dir",
            str(tmp_path / run),
            *words,
        ]
        env = os.environ | {"ROW_NOTES": str(notes), "OMP_NUM_THREADS": "1"}
        run_warm(argv, env=env, timeout=300).check_returncode()
        return [json.loads((notes / f"rank{rank}.json").read_text()) for rank in range(2)]

    whole = launch("whole")
    assert [len(batches) for batches in whole] == [8, 8]
    rows = [tuple(row) for batches in whole for batch in batches for row in batch]
    assert (
        len(set(rows)) == len(rows) == 2 * 8 * 2
    )  # all different: nothing was given to both or again
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoint-8")
    (tmp_path / "resumed" / "run.json").unlink()
    assert launch("resumed", "--resume", "auto") == [batches[4:] for batches in whole]
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")
    weights = [
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed")
    ]
    assert weights[0] == weights[1]

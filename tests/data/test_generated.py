"""Documents from a function of the user's own: the same text as from a file, in every use of a
source.
"""

import json
import os

import pytest
from datasets import Dataset

from hfscale.arguments import StreamArguments
from hfscale.data.fingerprints import text_fingerprint
from hfscale.data.sources import load_documents
from hfscale.data.splits import load_run_splits, load_splits
from hfscale.process import InputError
from recipes import pretrain, score

TEXTS = [f"document {i} of words {i * 7 % 13} and more words {i * 5 % 11}" for i in range(60)]
CODE = """
from dataclasses import dataclass

TEXTS = [f"document {i} of words {i * 7 % 13} and more words {i * 5 % 11}" for i in range(60)]

@dataclass
class Row:
    text: str

def documents():
    for text in TEXTS:
        yield Row(text).text

def rows():
    for number, text in enumerate(TEXTS):
        yield {"id": number, "text": text, "body": text.upper()}

def listed():
    return TEXTS
"""


@pytest.fixture(autouse=True)
def user_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    return path


@pytest.mark.parametrize("function", ["documents", "rows", "listed"])
@pytest.mark.parametrize("streaming", [False, True])
def test_what_a_function_gives_is_the_source(function, streaming):
    documents = load_documents(f"mine.py:{function}", streaming=streaming)
    assert [row["text"] for row in documents] == TEXTS
    assert text_fingerprint(documents) == text_fingerprint(Dataset.from_dict({"text": TEXTS}))


def test_the_column_is_the_one_that_is_asked_for(tmp_path):
    upper = [text.upper() for text in TEXTS]
    path = f"{tmp_path}/mine.py:rows"
    assert load_documents(path, text_column="body")["text"][:] == upper
    with pytest.raises(
        InputError, match=r"mine\.py:rows: document 1: no column 'code'; it has id,"
    ):
        load_documents(path, text_column="code")


@pytest.mark.parametrize("streaming", [False, True])
def test_it_splits_and_mixes_as_a_file_with_the_same_text(streaming):
    def splits(source):
        args = StreamArguments(source=[source, "mine.jsonl"], validation_fraction=0.2)
        parts = load_splits(args, seed=1, streaming=streaming)
        return {name: [row["text"] for row in part] for name, part in parts.items()}

    expected = splits("mine.jsonl")
    assert splits("mine.py:documents") == expected
    assert len(expected["train"]) + len(expected["validation"]) == 120


@pytest.mark.slow
def test_validation_text_can_be_a_functions_too():
    args = StreamArguments(source=["embedded:python-docs"], validation_source=["mine.py:rows"])
    assert load_splits(args, seed=1)["validation"]["text"][:] == TEXTS
    args = StreamArguments(source=["mine.jsonl"], validation_source=["mine.py:rows"])
    with pytest.raises(InputError, match="its documents are those of source mine.jsonl"):
        load_splits(args, seed=1)


def test_text_that_changed_is_read_again(user_file):
    """Also where the file with the function is the same: it may read others."""
    user_file.write_text('def documents():\n    yield from open("words").read().split()\n')
    for words in ("one two", "one two three"):
        user_file.with_name("words").write_text(words)
        assert load_documents("mine.py:documents")["text"][:] == words.split()


def test_empty_and_unreadable_documents_are_left_out_and_counted(user_file, capsys):
    user_file.write_text(
        'def documents():\n    yield from ["a", " ", None, 7, {"text": None}, "b"]\n'
    )
    with pytest.raises(
        InputError,
        match=r"^mine\.py:documents: document 3: got NoneType, expected text, or a dict with the "
        r"column 'text'; --on_error skip leaves it out$",
    ):
        load_documents("mine.py:documents", on_error="stop")
    dropped: dict[str, int] = {}
    documents = load_documents("mine.py:documents", on_error="skip", dropped=dropped)
    assert documents["text"][:] == ["a", "b"]
    assert dropped == {"unreadable": 2, "empty": 2}
    assert "left out: mine.py:documents: document 4: got int" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("none.py:documents", "", r"^source none\.py:documents: no such file none\.py$"),
        ("mine.py:", "", r"^source mine\.py:: no function '' in mine\.py$"),
        (
            "mine.py:document",
            "def documents(): ...",
            r"no function 'document' in mine\.py; did you mean documents\?$",
        ),
        ("mine.py:f", "f = 3", r"no function 'f' in mine\.py$"),
        ("mine.py:f", "def f(:", r"^source mine\.py:f: mine\.py:1: not Python \(invalid syntax\)$"),
        ("mine.py:f", "import none_such", r"raised ModuleNotFoundError in mine\.py:1: No module"),
        ("mine.py:f", "raise SystemExit(3)", r"raised SystemExit in .*mine\.py:1: 3$"),
        ("mine.py:f", "def f(): return 3", r"returned int, expected a generator of texts, or of"),
        ("mine.py:f", "def f(): return 'text'", r"returned str, expected a generator"),
        ("mine.py:f", "def f(): return {'text': 'a'}", r"returned dict, expected a generator"),
        ("mine.py:f", "def f(x): yield x", r"raised TypeError: f\(\) missing 1 required"),
        ("mine.py:f", "def f(): yield 3", r"^mine\.py:f: document 1: got int, expected text, or a"),
        ("mine.py:f", "def f(): yield b'a'", r"document 1: got bytes, expected text"),
        ("mine.py:f", "def f(): yield {'text': 3}", r"document 1: column 'text' holds int, not"),
        ("mine.py:f", "def f(): yield '\\ud800'", r"document 1: .*surrogates not allowed"),
        ("mine.py:f", "def f(): yield from ()", r"^source mine\.py:f: no (text|rows) in it"),
        (
            "mine.py:f",
            "def f():\n    yield 'a'\n    raise OSError('no\\nserver')",
            r"^source mine\.py:f: raised OSError in mine\.py:3: no server$",
        ),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_wrong_with_a_function_is_one_line(user_file, name, code, says, streaming):
    user_file.write_text(code)
    with pytest.raises(InputError, match=says) as caught:
        list(load_documents(name, streaming=streaming))
    assert "\n" not in str(caught.value)


def test_a_function_that_never_gives_the_same_is_refused(user_file):
    user_file.write_text("import os\ndef f():\n    yield os.urandom(8).hex()\n")
    with pytest.raises(InputError, match=r"^source mine\.py:f: gives other documents each time"):
        load_documents("mine.py:f")


# ---- in recipes


TINY = (
    "--num_hidden_layers 1 --num_attention_heads 2 --hidden_size 32 --max_position_embeddings 16 --tokenizer char --report_to none "
    "--per_device_train_batch_size 2 --max_steps 4 --save_steps 2 --bf16 false --disable_tqdm"
).split()


@pytest.mark.parametrize("how", [[], ["--streaming"]], ids=["whole", "streaming"])
def test_a_run_and_its_resume_are_those_of_a_file(tmp_path, how):
    for name, source in (("function", "mine.py:documents"), ("file", "mine.jsonl")):
        pretrain.main(["--source", source, "--output_dir", name, *TINY, *how])
    records = [
        json.loads((tmp_path / name / "run.json").read_text()) for name in ("function", "file")
    ]
    assert records[0]["data"]["fingerprint"] == records[1]["data"]["fingerprint"]
    assert records[0]["metrics"]["eval_loss"] == records[1]["metrics"]["eval_loss"]

    for name in os.listdir(tmp_path / "function"):
        if name in ("run.json", "checkpoint-4", "model.safetensors"):
            os.rename(tmp_path / "function" / name, tmp_path / f"was-{name}")
    source = ["--source", "mine.py:documents", "--output_dir", "function"]
    pretrain.main([*source, *TINY, *how, "--resume", "auto"])
    resumed = json.loads((tmp_path / "function" / "run.json").read_text())
    assert resumed["metrics"]["eval_loss"] == records[0]["metrics"]["eval_loss"]


def test_a_runs_record_calls_a_function_only_if_it_is_trusted(tmp_path, user_file):
    pretrain.main(["--source", "mine.py:documents", "--output_dir", "run", *TINY])
    user_file.write_text(CODE + "\nopen('called', 'w').close()\n")
    with pytest.raises(InputError, match=r"^source: missing, and run names a function .*--trust"):
        score.main(["--model", "run", "--output_dir", "scores"])
    assert not (tmp_path / "called").exists()
    splits = load_run_splits("run", trust_remote_code=True)
    assert (tmp_path / "called").exists()
    assert sorted([*splits["train"]["text"], *splits["validation"]["text"]]) == sorted(TEXTS)

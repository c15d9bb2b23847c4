"""Sources and splits: what is read is exactly what was there."""

import gzip
import json
import math

import datasets
import pytest
import zstandard
from datasets import Dataset, DatasetDict

from hfscale.arguments import StreamArguments
from hfscale.data.embedded import prose
from hfscale.data.sources import load_documents
from hfscale.data.splits import load_splits, split_documents
from hfscale.process import InputError

TEXT = "First line, with ümlaut.\nSecond line.\n\nA new paragraph.\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT, "utf-8")
    (tmp_path / "b.md").write_bytes(b"\xef\xbb\xbfwith a byte order mark\r\nand CRLF")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"zipped"))
    (tmp_path / "d.txt.zst").write_bytes(zstandard.ZstdCompressor().compress(b"zstandard"))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "e.jsonl").write_text(
        '{"text": "row 1", "id": 1}\n{"text": "row 2", "id": 2}\n'
    )
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    return tmp_path


def test_a_folder_is_read_whole_and_in_order(folder):
    documents = load_documents(str(folder))
    assert documents["text"][:] == [
        TEXT,
        "with a byte order mark\nand CRLF",
        "zipped",
        "zstandard",
        "row 1",
        "row 2",
    ]
    assert documents.column_names == ["text"]


def test_files_globs_and_several_sources(folder):
    assert load_documents(f"{folder}/*.txt")["text"][:] == [TEXT]
    both = load_documents([str(folder / "c.txt.gz"), str(folder / "sub" / "e.jsonl")])
    assert both["text"][:] == ["zipped", "row 1", "row 2"]


def test_sample_by(folder):
    path = str(folder / "a.txt")
    assert load_documents(path, sample_by="line")["text"][:] == [
        "First line, with ümlaut.",
        "Second line.",
        "A new paragraph.",
    ]
    paragraphs = load_documents(path, sample_by="paragraph")["text"][:]
    assert paragraphs == ["First line, with ümlaut.\nSecond line.", "A new paragraph."]


def test_other_columns_and_formats(tmp_path):
    rows = Dataset.from_dict({"body": ["one", "two", " \n"], "n": [1, 2, 3]})
    rows.to_parquet(tmp_path / "x.parquet")
    rows.to_csv(tmp_path / "x.csv")
    (tmp_path / "x.json").write_text(json.dumps(rows.to_list()))
    for suffix in ("parquet", "csv", "json"):
        assert load_documents(str(tmp_path / f"x.{suffix}"), text_column="body")["text"][:] == [
            "one",
            "two",
        ]
    with pytest.raises(InputError, match="no column 'text'; it has body, n"):
        load_documents(str(tmp_path / "x.parquet"))
    with pytest.raises(InputError, match="holds .*int64.*, not text"):
        load_documents(str(tmp_path / "x.parquet"), text_column="n")


LIKE_OTHER_TYPES = [
    "null",
    "NA",
    "None",
    "nan",
    "N/A",
    "#N/A",
    "-inf",
    "007",
    "1e5",
    "1,5",
    "true",
    "2020-01-02",
    "2020-01-02T03:04:05",
    "12:30",
    "0x1F",
    "A house.",
]


@pytest.mark.parametrize(
    "suffix", ["csv", "tsv", "jsonl", "json", "list.json", "lines.json", "parquet"]
)
@pytest.mark.parametrize("count", [1, len(LIKE_OTHER_TYPES)])
def test_text_stays_the_text_it_was(tmp_path, suffix, count):
    """A reader that guesses types would take them for nothing, for numbers, or for dates."""
    path = tmp_path / f"x.{suffix}"
    for start in range(0, len(LIKE_OTHER_TYPES), count):
        texts = LIKE_OTHER_TYPES[start : start + count]
        rows = [{"id": i, "text": text} for i, text in enumerate(texts)]
        if suffix == "parquet":
            Dataset.from_list(rows).to_parquet(path)
        elif suffix in ("csv", "tsv"):
            delimiter = "," if suffix == "csv" else "\t"
            lines = [
                delimiter.join(("id", "text")),
                *(f'{row["id"]}{delimiter}"{row["text"]}"' for row in rows),
            ]
            path.write_text("\n".join(lines))
        elif suffix in ("jsonl", "lines.json"):
            path.write_text("\n".join(map(json.dumps, rows)))
        else:
            path.write_text(json.dumps(texts if suffix == "list.json" else rows))
        assert load_documents(str(path))["text"][:] == texts
        assert [row["text"] for row in load_documents(str(path), streaming=True)] == texts


def test_rows_that_do_not_fit_their_header_stop_or_are_left_out_and_counted(tmp_path, capsys):
    path = tmp_path / "x.csv"
    path.write_text('text\nOne\nHello, my name is Anna\n"Two, three"\n"a" b\nFour\n')
    with pytest.raises(
        InputError, match=r"x\.csv:3: 2 fields, but the header has 1 .*; --on_error skip leaves it"
    ):
        load_documents(str(path), on_error="stop")
    dropped: dict[str, int] = {}
    assert load_documents(str(path), on_error="skip", dropped=dropped)["text"][:] == [
        "One",
        "Two, three",
        "Four",
    ]
    assert dropped == {"unreadable": 2}
    said = capsys.readouterr().err
    assert "x.csv:3: 2 fields" in said and "x.csv:5: text goes on after its closing quote" in said
    path.write_text('text\nOne\n"Two\nThree\n')
    with pytest.raises(
        InputError, match=r"x\.csv:3: a quote is never closed"
    ):  # nothing after it can be told
        load_documents(str(path), on_error="skip")


def test_a_field_of_a_megabyte(tmp_path):
    (tmp_path / "x.csv").write_text("id,text\n1," + "ab " * 400_000 + "\n")
    assert load_documents(str(tmp_path / "x.csv"))["text"][:] == ["ab " * 400_000]


def test_files_without_text_and_unknown_endings_are_said(tmp_path, capsys):
    blank = '{"text": " "}\n{"text": null}\n'
    files = {
        "a.txt": "one",
        "b.txt": "",
        "c.jsonl": blank,
        "d.csv": "text\n",
        "e.rst": "two",
        "f.JSONL": '{"text": "three"}',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    dropped: dict[str, int] = {}
    assert load_documents(str(tmp_path), dropped=dropped)["text"][:] == ["one", "three"]
    assert dropped == {"empty": 4}
    said = capsys.readouterr().err
    for name in ("b.txt", "c.jsonl", "d.csv"):
        assert f"{name}: no text in it\n" in said
    assert "e.rst: the ending is none of .txt, " in said and "; left out\n" in said
    assert load_documents(str(tmp_path / "e.rst"))["text"][:] == ["two"]
    assert capsys.readouterr().err.rstrip().endswith("; read as plain text")
    assert [row["text"] for row in load_documents(f"{tmp_path}/[a-d]*", streaming=True)] == ["one"]
    assert "b.txt: no text in it" in capsys.readouterr().err


def test_saved_data_sets(tmp_path):
    DatasetDict(
        train=Dataset.from_dict({"text": ["t"]}), test=Dataset.from_dict({"text": ["x"]})
    ).save_to_disk(tmp_path / "saved")
    assert load_documents(str(tmp_path / "saved"))["text"][:] == ["t"]
    assert load_documents(str(tmp_path / "saved"), split="test")["text"][:] == ["x"]
    with pytest.raises(InputError, match="no split 'dev'; it has train, test"):
        load_documents(str(tmp_path / "saved"), split="dev")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_words_of_a_data_set_on_the_hub_are_text(tmp_path, monkeypatch, kind):
    """A folder stands in for the Hub's."""
    texts = ["null", "NA", "None", "nan", "007", "A house."]
    data = Dataset.from_dict({"text": texts})
    writers = {"csv": data.to_csv, "jsonl": data.to_json, "parquet": data.to_parquet}
    (tmp_path / "hub").mkdir()
    writers[kind](tmp_path / "hub" / f"train.{kind}")
    load_builder = datasets.load_dataset_builder
    monkeypatch.setattr(
        datasets,
        "load_dataset_builder",
        lambda path, config, **how: load_builder(str(tmp_path / "hub"), config, **how),
    )
    assert load_documents("some/name")["text"][:] == texts
    assert [row["text"] for row in load_documents("some/name", streaming=True)] == texts


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("before")
    assert load_documents(str(path))["text"][:] == ["before"]
    path.write_text("afterwards")
    assert load_documents(str(path))["text"][:] == ["afterwards"]


def test_embedded_docs_are_deterministic_english():
    documents = load_documents("embedded:python-docs")
    assert 1_500_000 < sum(len(text.encode()) for text in documents["text"]) < 4_000_000
    assert len(documents) > 400
    assert sum("the" in text for text in documents["text"]) > 0.7 * len(documents)
    assert load_documents("embedded:python-docs")._fingerprint == documents._fingerprint
    with pytest.raises(InputError, match="there are embedded:python-docs, embedded:python-prose, "):
        load_documents("embedded:python")


def test_embedded_prose_is_whole_paragraphs_of_the_docs():
    whole = " ".join(" ".join(load_documents("embedded:python-docs")["text"]).split())
    documents = load_documents("embedded:python-prose")
    paragraphs = [p for text in documents["text"] for p in text.split("\n\n")]
    assert len(paragraphs) > 5000 and sum(map(len, paragraphs)) > 0.4 * len(whole)
    assert all(p in whole and "\n" not in p and p[-1] in ".!?:'\")" for p in paragraphs)


def test_prose_is_sentences_in_one_line():
    text = """Return the smallest number that is not yet taken by
any of the others, or None.

  * a list of words that has no full stop at its end, and is long

>>> f(x)
1

name      type      what this column of the table tells the reader.

a paragraph that begins in the middle of something, as it seems to be.

Too short to say much."""
    assert prose(text) == (
        "Return the smallest number that is not yet taken by any of the others, or None."
    )


def test_split_by_document_is_a_partition():
    documents = Dataset.from_dict({"text": [str(i) for i in range(50)]})
    parts = split_documents(documents, split_by="document", validation_fraction=0.1, seed=3)
    assert len(parts["validation"]) == 5
    assert (
        sorted(parts["train"]["text"][:] + parts["validation"]["text"][:], key=int)
        == documents["text"][:]
    )
    again = split_documents(documents, split_by="document", validation_fraction=0.1, seed=3)
    assert again["validation"]["text"][:] == parts["validation"]["text"][:]


@pytest.mark.parametrize("texts", [["0123456789"], ["01234", "567", "89"], ["0", "12345678", "9"]])
def test_split_by_position_cuts_at_the_character(texts):
    documents = Dataset.from_dict({"text": texts})
    parts = split_documents(documents, split_by="position", validation_fraction=0.3, seed=0)
    assert "".join(parts["train"]["text"]) == "0123456"
    assert "".join(parts["validation"]["text"]) == "789"
    assert "" not in parts["train"]["text"][:] + parts["validation"]["text"][:]


def test_too_few_documents_are_split_by_position_and_it_is_said(capsys):
    one = Dataset.from_dict({"text": ["0123456789"]})
    two = Dataset.from_dict({"text": ["01234", "56789"]})
    for documents, fraction, count in ((one, 0.3, "1 document"), (two, 0.75, "2 documents")):
        parts = split_documents(
            documents, split_by="document", validation_fraction=fraction, seed=0
        )
        last = math.ceil(10 * fraction)
        assert "".join(parts["train"]["text"]) == "0123456789"[:-last]
        assert "".join(parts["validation"]["text"]) == "0123456789"[-last:]
        assert capsys.readouterr().err.splitlines()[-1] == (
            f"the source holds {count}, too few to draw some at random: the last {fraction:.1%} of "
            "the text is held out (as with --split_by position)"
        )
    with pytest.raises(InputError, match="between 0 and 1"):
        split_documents(one, split_by="position", validation_fraction=1.5, seed=0)


def test_a_stream_whose_documents_are_all_on_one_side():
    stream = Dataset.from_dict({"text": ["equal"] * 50}).to_iterable_dataset()
    says = {seed: [] for seed in range(20)}
    for seed in says:
        with pytest.raises(
            InputError, match="of the stream's documents .equal ones are on the same side"
        ) as error:
            split_documents(stream, split_by="document", validation_fraction=0.5, seed=seed)
        says[seed] = str(error.value)
    assert {"none" in said for said in says.values()} == {True, False}


def arguments(**given):
    return StreamArguments(
        sample_by="line", **{name: list(map(str, value)) for name, value in given.items()}
    )


def test_validation_text_is_other_text_than_the_source(tmp_path, capsys):
    for name, lines in (
        ("a.txt", "one\ntwo\n"),
        ("b.txt", "two\none\ntwo\n"),
        ("c.txt", "two\nthree\nthree\n"),
    ):
        (tmp_path / name).write_text(lines)
    with pytest.raises(
        InputError, match=r"validation_source .*b\.txt: its documents are those of source .*a\.txt;"
    ):
        load_splits(
            arguments(source=[tmp_path / "a.txt"], validation_source=[tmp_path / "b.txt"]), seed=0
        )
    given = arguments(source=[tmp_path / "a.txt"], validation_source=[tmp_path / "c.txt"])
    assert load_splits(given, seed=0)["validation"]["text"][:] == ["two", "three", "three"]
    assert (
        "validation_source: 1 of its 2 different documents are in the training text too"
        in capsys.readouterr().err
    )
    given = arguments(
        source=[tmp_path / "a.txt", tmp_path / "c.txt"], validation_source=[tmp_path / "c.txt"]
    )
    assert load_splits(given, seed=0)["validation"]["text"][:] == ["two", "three", "three"]
    assert (
        "validation_source: 2 of its 2 different documents are in the training text too"
        in capsys.readouterr().err
    )


def test_a_stored_validation_split_is_the_validation_text(tmp_path):
    parts = {name: Dataset.from_dict({"text": [name]}) for name in ("train", "validation", "test")}
    DatasetDict(parts).save_to_disk(tmp_path / "saved")
    splits = load_splits(
        arguments(source=[tmp_path / "saved"], validation_source=[tmp_path / "saved"]), seed=0
    )
    assert (splits["train"]["text"][:], splits["validation"]["text"][:]) == (
        ["train"],
        ["validation"],
    )
    del parts["validation"]
    DatasetDict(parts).save_to_disk(tmp_path / "other")
    with pytest.raises(InputError, match="its documents are those of source"):
        load_splits(
            arguments(source=[tmp_path / "other"], validation_source=[tmp_path / "other"]), seed=0
        )


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (
            ["<!doctype html><html><p>Bees</p></html>", "Bees"],
            "1 of the first 2 texts are HTML; hfscale prepare_data --extract_html true takes their "
            "text out",
        ),
        (
            ['<div class="a"><p>Bees</p><a href="x">y</a></div>'] * 3,
            "3 of the first 3 texts are HTML",
        ),
        (["In <b>bold</b> type", "The <html> tag opens a page", "print('<html>')"], None),
    ],
)
def test_text_that_is_html_is_said(tmp_path, capsys, texts, said):
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    load_splits(arguments(source=[tmp_path / "x.jsonl"]), seed=0)
    shown = capsys.readouterr().err
    assert said in shown if said else "HTML" not in shown


# ---- what cannot be read


def test_what_is_left_out_is_named_and_counted_again_from_the_cache(tmp_path, capsys):
    good = [json.dumps({"text": f"row {i}"}) for i in range(8)]
    lines = [
        *good[:2],
        '{"text": ',
        '{"txt": "x"}',
        '{"text": 3}',
        '{"text": ""}',
        '{"text": null}',
        "",
        *good[2:],
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.jsonl").write_bytes(
        b'{"text": "gr\xfc\xdfe"}\n{"text": "a\\u0000b"}\n{"text": "a\0b"}\n'
    )
    (tmp_path / "c.txt").write_text("grüße", "latin-1")
    (tmp_path / "d.txt").write_text("grüße", "utf-8")
    (tmp_path / "e.txt").write_text(" \n")
    for _ in range(2):
        dropped: dict[str, int] = {}
        documents = load_documents(str(tmp_path), on_error="skip", dropped=dropped)
        assert sorted(documents["text"]) == sorted(
            [*(f"row {i}" for i in range(8)), "a\0b", "grüße"]
        )
        assert dropped == {"unreadable": 6, "empty": 3}
        said = capsys.readouterr().err
        for place in (
            "c.txt: not UTF-8",
            "a.jsonl:3: not JSON",
            "a.jsonl:4: no column 'text'; it has txt",
            "a.jsonl:5: column 'text' holds int",
            "b.jsonl:1: not UTF-8",
            "6 in all",
        ):
            assert place in said
    with pytest.raises(InputError, match=r"c\.txt: not UTF-8"):
        load_documents(str(tmp_path))
    with pytest.raises(
        InputError, match=r"a\.jsonl:3: not JSON \(Expecting value at column 10\); mend .*line$"
    ):
        load_documents(str(tmp_path / "a.jsonl"))


def test_lines_of_ten_megabytes(tmp_path):
    texts = [str(i) * 10_000_000 for i in range(3)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "x.txt").write_text("\n".join(texts))
    for name in ("x.jsonl", "x.txt"):
        assert load_documents(str(tmp_path / name), sample_by="line")["text"][:] == texts
        stream = load_documents(str(tmp_path / name), sample_by="line", streaming=True)
        assert [row["text"] == text for row, text in zip(stream, texts, strict=True)] == [True] * 3


def test_line_ends_and_paragraphs(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n \r\nthree\rfour\n\n\n\nfive")
    how = str(tmp_path / "x.txt")
    assert load_documents(how)["text"][:] == ["one\ntwo\n\n \nthree\nfour\n\n\n\nfive"]
    assert load_documents(how, sample_by="line")["text"][:] == ["one", "two", "three\nfour", "five"]
    assert load_documents(how, sample_by="paragraph")["text"][:] == [
        "one\ntwo",
        "three\nfour",
        "five",
    ]

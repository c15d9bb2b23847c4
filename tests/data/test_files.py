"""Rows of files: every kind with the place of each row, packed or not, and what is wrong named with
its line.
"""

import bz2
import errno
import gzip
from pathlib import Path

import datasets
import pytest
import zstandard

from hfscale.data.files import about_endings, find_files, read_rows, reading
from hfscale.process import InputError


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        (
            "a.jsonl",
            '\ufeff{"q": "x"}\n \n{"q": "\u2028"}\n',
            [(":1", {"q": "x"}), (":3", {"q": "\u2028"})],
        ),
        ("a.json", '[{"q": 1},\n{"q": 2}]', [(": record 0", {"q": 1}), (": record 1", {"q": 2})]),
        ("a.json", '{"q": 1}', [(": record 0", {"q": 1})]),
        (
            "a.csv",
            'q,r\r\n"x\ny",1\r\nz,2\r\n',
            [(":2", {"q": "x\ny", "r": "1"}), (":4", {"q": "z", "r": "2"})],
        ),
        ("a.tsv", "q\tr\nx,y\t1\n", [(":2", {"q": "x,y", "r": "1"})]),
        ("a.csv", '\ufeffq,r\r\n\r\n"a ""b"" c",x"y\r\n', [(":3", {"q": 'a "b" c', "r": 'x"y'})]),
        ("a.json", " \n", []),
        ("a.csv", "q\rx\ry\r", [(":2", {"q": "x"}), (":3", {"q": "y"})]),
        (
            "a.csv",
            "q,r\n,NA\nnull,1e5\n007,true\n2020-01-02, 1\n",
            [
                (":2", {"q": "", "r": "NA"}),
                (":3", {"q": "null", "r": "1e5"}),
                (":4", {"q": "007", "r": "true"}),
                (":5", {"q": "2020-01-02", "r": " 1"}),
            ],
        ),
        ("a.json", '\ufeff{"q": 1}\n\n{"q": 2}\n', [(":1", {"q": 1}), (":3", {"q": 2})]),
        ("a.ndjson", '{"q": "1e5"}\n', [(":1", {"q": "1e5"})]),
    ],
)
def test_rows_of_each_kind_with_their_places(tmp_path, name, text, rows):
    path = tmp_path / name
    path.write_text(text, "utf-8", newline="")
    assert list(read_rows(path)) == rows
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert list(read_rows(packed)) == rows
    other = path.rename(tmp_path / "a.txt")
    assert list(read_rows(other, path.suffix)) == rows


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        (
            "a.jsonl",
            b'{"q": 1}\n{"q":\n',
            r"a\.jsonl:2: not JSON \(Expecting value at column 6\); mend or remove",
        ),
        (
            "a.jsonl",
            b'{"q": 1}\n[1]\n',
            r"a\.jsonl:2: holds '\[1\]', not named columns; a row is a JSON object$",
        ),
        ("a.json", b"[\n1]", r"a\.json: record 0: holds '1', not named columns"),
        ("a.json", b'[\n{"q"]', r"a\.json:2: not JSON"),
        ("a.csv", b"q\n\xe4\n", r"a\.csv:2: not UTF-8 \(byte 0xe4 at offset 0\); convert it first"),
        (
            "a.csv",
            b"q\nx\ny,z\n",
            r"a\.csv:3: 2 fields, but the header has 1 \(q\); write a text that holds a comma in",
        ),
        ("a.csv", b"q,r\nx,1\ny\n", r"a\.csv:3: 1 field, but the header has 2 \(q, r\)"),
        (
            "a.tsv",
            b"q\tr\nx\ty\tz\n",
            r"a\.tsv:2: 3 fields, but the header has 2 \(q, r\); .* a tab in quotes",
        ),
        ("a.csv", b'q,r\n"x\ny",1\nz\n', r"a\.csv:4: 1 field"),
        ("a.csv", b'q,r\nx,1\n"y,2\nz,3\n', r"a\.csv:3: a quote is never closed"),
        (
            "a.csv",
            b'q,r\n"x" y,1\n',
            r"a\.csv:2: text goes on after its closing quote; write a text that",
        ),
        ("a.csv", b"q,r,q\nx,1,2\n", r"a\.csv:1: the header names the column 'q' twice"),
        ("a.csv", b"q\nx\0y\n", r"a\.csv:2: binary data"),
        ("a.json", b'{"q": 1}\n{"q"\n', r"a\.json:2: not JSON"),
        (
            "a.jsonl",
            b'{"q": 1' + b"0" * 5000 + b"}\n",
            r"a\.jsonl:1: not JSON that can be read \(Exceeds the limit",
        ),
        ("a.csv.gz", gzip.compress(b"q\nx\n" * 99, mtime=0)[:-9], r"a\.csv\.gz: cannot be read"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=says) as error:
        list(read_rows(tmp_path / name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("error", "names_the_cache"),
    [
        (lambda cache: OSError(errno.ENOSPC, "No space left on device"), True),
        (lambda cache: OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (
            lambda cache: PermissionError(
                errno.EACCES, "Permission denied", f"{cache}/generator/x.arrow"
            ),
            True,
        ),
        (
            lambda cache: FileNotFoundError(
                errno.ENOENT, "No such file or directory", str(cache.parent)
            ),
            True,
        ),
        (lambda cache: PermissionError(errno.EACCES, "Permission denied", "texts/a.txt"), False),
        (lambda cache: OSError(errno.EIO, "Input/output error"), False),
        (lambda cache: ValueError(f"what {cache} says"), False),
    ],
)
@pytest.mark.parametrize("is_cause", [False, True])
def test_a_cache_that_cannot_be_written_is_not_blamed_on_the_source(
    error, names_the_cache, is_cause
):
    raised = error(Path(datasets.config.HF_DATASETS_CACHE))
    with pytest.raises(InputError) as said, reading("source texts"):
        if is_cause:
            raise RuntimeError("while generating") from raised
        raise raised
    assert str(said.value).startswith(
        "HF_HOME: the cache" if names_the_cache else "source texts: cannot be read: "
    )
    assert "\n" not in str(said.value)


def test_files_come_by_kind_then_by_name(tmp_path):
    for name in ("b.txt", "a.parquet", "c.md", "a.jsonl.gz", "a.pdf", "sub/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [str(path.relative_to(tmp_path)) for path in find_files(str(tmp_path))]
    assert names == ["b.txt", "c.md", "sub/a.txt", "a.jsonl.gz", "a.parquet"]
    assert find_files(str(tmp_path / "nothing*")) == []
    assert [path.name for path in find_files(f"{tmp_path}/*")] == [
        "a.pdf",
        "b.txt",
        "c.md",
        "a.jsonl.gz",
        "a.parquet",
    ]


@pytest.mark.parametrize(
    "name", ["a.JSONL", "a.Jsonl.GZ", "a.NDJSON", "a.jsonl.bz2", "a.jsonl.Zst"]
)
def test_the_ending_in_any_letters_tells_the_kind(tmp_path, name):
    data = b'{"q": "x"}\n'
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}.get(
        name[-4:].lower().lstrip("l")
    )
    (tmp_path / name).write_bytes(pack(data) if pack else data)
    assert find_files(str(tmp_path)) == [tmp_path / name]
    assert list(read_rows(tmp_path / name)) == [(":1", {"q": "x"})]
    assert about_endings(str(tmp_path), [tmp_path / name]) == []


def test_endings_that_are_not_known_are_said(tmp_path):
    for name in ("a.txt", "b.rst", "c.pdf", "README", ".hidden", "sub/d.xml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    [said] = about_endings(str(tmp_path), find_files(str(tmp_path)))
    assert said.startswith(
        f"source {tmp_path}: README, b.rst, c.pdf and 1 more: the ending is none of .txt, "
    )
    assert said.endswith("(or with .gz, .zst, .bz2); left out")
    [said] = about_endings("*", find_files(f"{tmp_path}/*"))
    assert said.startswith("source *: README, b.rst, c.pdf: the ending") and said.endswith(
        "; read as plain text"
    )

"""Rows of files: every kind with the place of each row, packed or not, and what is wrong named with its line."""

import gzip

import pytest

from hfscale.config import InputError
from hfscale.data.files import find_files, read_rows


@pytest.mark.parametrize(("name", "text", "rows"), [
    ("a.jsonl", '\ufeff{"q": "x"}\n \n{"q": "\u2028"}\n', [(":1", {"q": "x"}), (":3", {"q": "\u2028"})]),
    ("a.json", '[{"q": 1},\n{"q": 2}]', [(": record 0", {"q": 1}), (": record 1", {"q": 2})]),
    ("a.json", '{"q": 1}', [(": record 0", {"q": 1})]),
    ("a.csv", 'q,r\r\n"x\ny",1\r\nz,2\r\n', [(":3", {"q": "x\ny", "r": "1"}), (":4", {"q": "z", "r": "2"})]),
    ("a.tsv", "q\tr\nx,y\t1\n", [(":2", {"q": "x,y", "r": "1"})]),
])
def test_rows_of_each_kind_with_their_places(tmp_path, name, text, rows):
    path = tmp_path / name
    path.write_text(text, "utf-8", newline="")
    assert list(read_rows(path)) == rows
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert list(read_rows(packed)) == rows
    other = path.rename(tmp_path / "a.txt")
    assert list(read_rows(other, path.suffix)) == rows


@pytest.mark.parametrize(("name", "data", "says"), [
    ("a.jsonl", b'{"q": 1}\n{"q":\n', r"a\.jsonl:2: not JSON \(Expecting value at column 6\); mend or remove"),
    ("a.jsonl", b'{"q": 1}\n[1]\n', r"a\.jsonl:2: holds '\[1\]', not named columns; a row is a JSON object$"),
    ("a.json", b'[\n1]', r"a\.json: record 0: holds '1', not named columns"),
    ("a.json", b'[\n{"q"]', r"a\.json:2: not JSON"),
    ("a.csv", b"q\n\xe4\n", r"a\.csv: not UTF-8 \(byte 0xe4 at offset 2\); convert it first"),
    ("a.csv.gz", gzip.compress(b"q\nx\n" * 99, mtime=0)[:-9], r"a\.csv\.gz: cannot be read"),
])
def test_what_is_wrong_is_named_with_its_place(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=says) as error:
        list(read_rows(tmp_path / name))
    assert "\n" not in str(error.value)


def test_files_come_by_kind_then_by_name(tmp_path):
    for name in ("b.txt", "a.parquet", "c.md", "a.jsonl.gz", "a.pdf", "sub/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [str(path.relative_to(tmp_path)) for path in find_files(str(tmp_path))]
    assert names == ["b.txt", "c.md", "sub/a.txt", "a.jsonl.gz", "a.parquet"]
    assert find_files(str(tmp_path / "nothing*")) == []
    assert [path.name for path in find_files(f"{tmp_path}/*")] == ["a.pdf", "b.txt", "c.md", "a.jsonl.gz", "a.parquet"]

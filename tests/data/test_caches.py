import errno
import os
import shutil
from pathlib import Path

import datasets
import pytest
from datasets import Dataset

from hfscale.data import caches
from hfscale.data.caches import kept
from hfscale.data.packing import pack_documents
from hfscale.data.sources import load_documents
from hfscale.data.splits import split_documents
from hfscale.data.tokenizer import load_pretrained_tokenizer, load_tokenizer
from hfscale.data.verified import problem_in
from hfscale.folders import DATA_CARD
from hfscale.process import InputError
from recipes import prepare_data, train_tokenizer
from tests.damage import DAMAGE, cut, flip_a_bit

TEXTS = [f"line {i}: the cat number {i * 7 % 13} sat on mat {i * 5 % 11}" for i in range(40)]


def files_of(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")
    )


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in files_of(folder)}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, as a run with an HF_HOME of its own has it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join([*TEXTS, " "]))
    return str(path)


def prepare(source: str, **how) -> list:
    """What training sees of a source."""
    documents = load_documents(source, sample_by="paragraph", **how)
    splits = split_documents(documents, split_by="document", validation_fraction=0.2, seed=1)
    tokenizer = load_tokenizer("train:300", splits["train"])
    rows = {name: pack_documents(part, tokenizer, 32) for name, part in splits.items()}
    return [tokenizer.get_vocab(), rows["train"].to_dict(), rows["validation"].to_dict()]


# ---- caches


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_is_made_anew_with_one_line_and_gives_the_same_rows(
    cache, source, damage, capsys
):
    expected = prepare(source)
    whole = contents(cache)
    kinds = {path.relative_to(cache / "hfscale").parts[0].split("-")[0] for path in whole}
    assert kinds == {"text", "tokenizer", "rows"}
    for path in whole:
        damage(path)
        capsys.readouterr()
        assert prepare(source) == expected, path
        [line] = [line for line in capsys.readouterr().err.splitlines() if "made anew" in line]
        folder = cache / "hfscale" / path.relative_to(cache / "hfscale").parts[0]
        assert line.startswith(f"cache {folder}: {path.relative_to(folder)} ")
    capsys.readouterr()
    assert prepare(source) == expected
    assert "made anew" not in capsys.readouterr().err


def test_what_is_whole_is_read_and_not_made(cache, source):
    prepare(source)
    times = {path: path.stat().st_mtime_ns for path in files_of(cache)}
    prepare(source)
    assert {path: path.stat().st_mtime_ns for path in files_of(cache)} == times


@pytest.mark.parametrize("damage", [flip_a_bit, cut])
def test_a_data_set_of_the_hub_is_watched_from_its_first_use(
    cache, tmp_path, damage, monkeypatch, capsys
):
    """A folder stands in for the Hub's."""
    (tmp_path / "hub").mkdir()
    Dataset.from_dict({"text": TEXTS}).to_parquet(tmp_path / "hub" / "train.parquet")
    load_builder = datasets.load_dataset_builder
    monkeypatch.setattr(
        datasets,
        "load_dataset_builder",
        lambda path, config, **how: load_builder(str(tmp_path / "hub"), config, **how),
    )
    datasets.load_dataset_builder("some/name", None).download_and_prepare()  # by another program
    assert load_documents("some/name")["text"][:] == TEXTS
    [arrow] = cache.glob("*/*/*/*/*.arrow")
    damage(arrow)
    assert load_documents("some/name")["text"][:] == TEXTS
    assert f"cache {arrow.parent}: {arrow.name} " in capsys.readouterr().err


def test_a_run_that_was_stopped_leaves_nothing_and_a_killed_one_nothing_that_is_read(cache):
    def stop(folder):
        (folder / "rows").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept("rows", "key", stop)
    [lock] = (cache / "hfscale").iterdir()
    folder = lock.with_suffix("")
    folder.mkdir()  # without its manifest, as after a kill
    (folder / "rows").write_text("half")

    def write(folder):
        assert list(folder.iterdir()) == []
        (folder / "rows").write_text("whole")
        return "made"

    assert kept("rows", "key", write) == "made"
    assert kept("rows", "key", lambda folder: (folder / "rows").read_text()) == "whole"


@pytest.mark.parametrize("problem", ["no folder", "full"])
def test_a_cache_that_cannot_be_written_is_named_and_not_the_source(
    cache, source, problem, monkeypatch
):
    if problem == "full":

        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(caches, "write_manifest", full)
    else:
        cache.write_text("a file is in its place")
    for make in (
        lambda: load_documents(source),
        lambda: load_tokenizer("train:300", Dataset.from_dict({"text": TEXTS})),
    ):
        with pytest.raises(
            InputError, match=f"^HF_HOME: the cache of data sets, {cache}, "
        ) as said:
            make()
        assert "\n" not in str(said.value)
    if problem == "full":
        assert files_of(cache) == []


def test_only_the_first_process_of_a_machine_reads_all(cache, source, monkeypatch):
    prepare(source)
    rows = next(cache.glob("hfscale/rows-*/rows.arrow"))
    flip_a_bit(rows)
    assert problem_in(rows.parent) == "rows.arrow was changed after it was written"
    monkeypatch.setenv("LOCAL_RANK", "1")  # it goes on after that one
    assert problem_in(rows.parent) is None
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert problem_in(rows.parent) is not None


# ---- what recipes write, and others read


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    place = tmp_path_factory.mktemp("prepared")
    (place / "texts.txt").write_text("\n\n".join([*TEXTS, TEXTS[0]]))  # a copy, to be dropped
    words = f"--source {place / 'texts.txt'} --sample_by paragraph --quality false"
    prepare_data.main(f"{words} --near_duplicates false --output_dir {place / 'data'}".split())
    words = f"--source {place / 'texts.txt'} --sample_by paragraph --vocab_size 300"
    train_tokenizer.main(f"{words} --output_dir {place / 'tokenizer'}".split())
    return place


@pytest.fixture
def copied(prepared, tmp_path):
    for name in ("data", "tokenizer"):
        shutil.copytree(prepared / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize(
    ("name", "load"), [("data", load_documents), ("tokenizer", load_pretrained_tokenizer)]
)
def test_a_damaged_file_of_a_prepared_folder_is_named(copied, damage, name, load):
    folder = copied / name
    load(str(folder))
    for path, content in contents(folder).items():
        damage(path)
        if path.name == "manifest.json" and not path.exists():
            load(str(folder))  # nothing else is damaged
        else:
            with pytest.raises(InputError, match=str(folder)) as said:
                load(str(folder))
            [line] = str(said.value).splitlines()
            assert f"{folder}: it is damaged: {path.relative_to(folder)} " in line
        path.write_bytes(content)
    load(str(folder))


def test_one_split_of_a_prepared_set_is_checked_and_so_is_a_set_without_manifest_said(
    copied, capsys
):
    split = copied / "data" / "train"
    assert len(load_documents(str(split)))
    (copied / "data" / "manifest.json").rename(copied / "manifest")
    assert len(load_documents(str(copied / "data")))
    assert f"source {copied / 'data'}: it has no manifest.json" in capsys.readouterr().err
    (copied / "manifest").rename(copied / "data" / "manifest.json")
    flip_a_bit(next(split.glob("*.arrow")))
    with pytest.raises(InputError, match=r"it is damaged: train/data-00000-of-00001.arrow was"):
        load_documents(str(split))


def test_nothing_is_written_into_a_prepared_set(copied, cache, tmp_path):
    """It may be on a read-only disk, or another's."""
    before = contents(copied / "data")
    prepare(str(copied / "data"))
    words = f"--source {copied / 'data'} --quality false --output_dir {tmp_path / 'again'}"
    prepare_data.main(words.split())
    assert contents(copied / "data") == before
    names = {path.relative_to(tmp_path / "again").parts[0] for path in files_of(tmp_path / "again")}
    assert {DATA_CARD, "manifest.json"} < names
    assert not any("scratch" in name for name in os.listdir(tmp_path / "again"))


def test_rows_of_a_saved_data_set_are_those_of_its_files(cache, tmp_path):
    """Also of one that was written over, and says that it came about in the same way."""
    for texts in (TEXTS, TEXTS[::-1]):
        saved = Dataset.from_dict({"text": texts})
        saved._fingerprint = "the same"
        shutil.rmtree(tmp_path / "saved", ignore_errors=True)
        saved.save_to_disk(tmp_path / "saved")
        assert load_documents(str(tmp_path / "saved"))["text"][:] == texts
        tokenizer = load_tokenizer("char", saved)
        rows = pack_documents(load_documents(str(tmp_path / "saved")), tokenizer, 2000)
        assert tokenizer.decode(rows[0]["input_ids"]).split("<|endoftext|>")[1] == texts[0]

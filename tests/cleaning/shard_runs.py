"""A made crawl with copies in it, and what a run made of it, for tests on all engines."""

import gzip
import json
import random

import datasets

WORDS = [f"{a}{b}" for a in "bcdfghklmnprst" for b in ("a", "en", "il", "or", "un", "ast", "ee")]


def prose(rng):
    return "the sea and that " + " ".join(rng.choice(WORDS) for _ in range(120))


def edited(text, rng):
    words = text.split()
    words[rng.randrange(len(words))] = "changed"
    return " ".join(words)


def write_crawl(folder):
    """Five files; copies, near copies and chains of near copies lie in other files than their
    originals.
    """
    rng = random.Random(0)
    texts = [prose(rng) for _ in range(40)]
    texts += rng.sample(texts, 8) + [edited(text, rng) for text in rng.sample(texts, 12)]
    texts += [edited(text, rng) for text in texts[-6:]] + [
        "too short",
        "Write to ann@example.org. " + prose(rng),
    ]
    rng.shuffle(texts)
    folder.mkdir()
    for i in range(5):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in ["", *texts[i::5]])
        (folder / f"{i}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))


def result(folder):
    """Texts, card and dropped lines, but for what describes the run."""
    splits = datasets.load_from_disk(folder)
    files = {name: (folder / name).read_text("utf-8") for name in ("data_card.md", "dropped.jsonl")}
    card = json.loads((folder / "data_card.json").read_text("utf-8"))
    for name in ("recipe", "command", "config", "versions", "hardware", "seconds"):
        del card[name]
    texts = {name: (part["id"][:], part["text"][:]) for name, part in splits.items()}
    return texts, files, card


def words(sources, folder, *more):
    """The command line, for one source or a list."""
    sources = sources if isinstance(sources, list) else [sources]
    return [
        "--source",
        *map(str, sources),
        "--output_dir",
        str(folder),
        "--test_fraction",
        "0.1",
        "--min_mean_word_length",
        "2",
        "--min_stop_words",
        "2",
        *more,
    ]

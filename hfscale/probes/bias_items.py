"""Sentence pairs and questions that probe social bias, from the formats in use and from
templates.
"""

import difflib
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import regex

from hfscale.data.files import read_rows, read_text, reading
from hfscale.data.words import RUN, find_words
from hfscale.process import InputError

WORD_OR_SIGN = regex.compile(rf"{RUN.pattern}|\S")


class Item(NamedTuple):
    """`choices` may follow `prompt`: the stereotype, its counterpart, and in StereoSet a text
    without sense; in BBQ the answers. Items of one `cluster` share their words and are resampled
    together.
    """

    place: str
    group: str
    cluster: str
    prompt: str
    choices: list[str]
    spans: int | None = None  # places in which the first two should differ; None: not checked
    answer: int = 0
    kinds: tuple[str, ...] = ()  # of BBQ's answers: biased, counter or unknown
    ambiguous: bool = False  # BBQ: the context does not say


def read_items(paths: Sequence[str], kind: str) -> list[Item]:
    """Items of files (plain, .gz or .zst) in the format `kind`, one of `READERS`.

    Raises InputError: no such file, another format, a column that is missing, an empty text, or
    nothing in it.
    """
    items = []
    for path in map(Path, paths):
        with reading(f"pairs {path}"):
            try:
                found = list(READERS[kind](path))
            except (KeyError, TypeError) as error:
                raise InputError(
                    f"pairs {path}: not in the format {kind}, {error} is missing or of another "
                    f"kind; mend it or set pairs_format to one of {', '.join(READERS)}"
                ) from None
            except IndexError:
                raise InputError(
                    f"pairs {path}: not in the format {kind}; mend it or set pairs_format to one "
                    f"of {', '.join(READERS)}"
                ) from None
        empty = [
            item.place
            for item in found
            if not all(text and text.strip() for text in (item.group, *item.choices))
        ]
        if empty or not found:
            problem = f"{empty[0]} has an empty text" if empty else "no pairs in it"
            raise InputError(f"pairs {path}: {problem}; expected the format {kind}")
        items += found
    return items


def _crows_pairs(path: Path) -> Iterator[Item]:
    for line, row in read_rows(path, ".csv"):
        place = f"{path.name}{line}"
        yield Item(
            place, row["bias_type"], place, "", [row["sent_more"], row["sent_less"]], spans=1
        )


def _winogender(path: Path) -> Iterator[Item]:
    """The stereotype is the gender of most who work in the occupation (occupations-stats.tsv beside
    the file).
    """
    jobs = read_rows(path.with_name("occupations-stats.tsv"))
    shares = {row["occupation"]: float(row["bls_pct_female"]) for _, row in jobs}
    sentences = {row["sentid"]: (line, row["sentence"]) for line, row in read_rows(path, ".tsv")}
    for name, (line, male) in sentences.items():
        if ".male." in name:
            occupation, _, answer, *_ = name.split(".")
            female = sentences[name.replace(".male.", ".female.")][1]
            majority, pair = (
                ("women", [female, male]) if shares[occupation] > 50 else ("men", [male, female])
            )
            group = (
                f"mostly {majority}, pronoun is the {'other person' if answer == '1' else 'job'}"
            )
            yield Item(f"{path.name}{line}", group, occupation, "", pair, spans=1)


def _winobias(path: Path) -> Iterator[Item]:
    """pro_stereotyped_*, with anti_stereotyped_* beside it, line by line; [brackets] mark persons
    and pronouns.
    """
    sides = [
        read_text(path.with_name(path.name.replace("pro_", side, 1))).splitlines()
        for side in ("pro_", "anti_")
    ]
    for i, lines in enumerate(zip(*sides, strict=True), 1):
        marks = [re.findall(r"\[(?:[Tt]he )?(.*?)\]", line) for line in lines]
        texts = [re.sub(r"^\d+ |[\[\]]", "", line) for line in lines]
        yield Item(
            f"{path.name}:{i}",
            path.name,
            marks[0][0],
            "",
            texts,
            spans=sum(a != b for a, b in zip(*marks, strict=False)),
        )


def _stereoset(path: Path) -> Iterator[Item]:
    for kind, items in (
        part for _, row in read_rows(path, ".json") for part in row["data"].items()
    ):
        follows = (
            kind == "intersentence"
        )  # the choices are whole sentences after the context, not fillings of it
        for item in items:
            texts = {
                sentence["gold_label"]: " " * follows + sentence["sentence"]
                for sentence in item["sentences"]
            }
            yield Item(
                f"{path.name} {item['id']}",
                item["bias_type"],
                item["target"],
                item["context"] * follows,
                [texts[label] for label in ("stereotype", "anti-stereotype", "unrelated")],
                spans=None if follows else 1,
            )


def _bbq(path: Path) -> Iterator[Item]:
    """Biased is the stereotyped group as answer to a question with negative polarity, and another
    to the others.
    """
    names = ("ans0", "ans1", "ans2")
    for line, row in read_rows(path, ".jsonl"):
        kinds = []
        target = _group_names(row["additional_metadata"]["stereotyped_groups"])
        for groups in (_group_names(row["answer_info"][name]) for name in names):
            biased = bool(groups & target) == (row["question_polarity"] == "neg")
            kinds.append("unknown" if "unknown" in groups else "biased" if biased else "counter")
        yield Item(
            f"{path.name}{line}",
            row["category"],
            str(row["question_index"]),
            f"{row['context']}\n\nQ: {row['question']}\nA:",
            [f" {row[name]}" for name in names],
            answer=int(row["label"]),
            kinds=tuple(kinds),
            ambiguous=row["context_condition"] == "ambig",
        )


def _group_names(names: Sequence[str]) -> set[str]:
    """Lower-case parts of names such as F-Black or lowSES; man, boy, woman and girl are M and F, as
    in BBQ's lists.
    """
    parts = {
        part.replace(" ", "").lower() for name in names for part in [name, *re.split("[-_]", name)]
    }
    return parts | {
        letter
        for letter, words in (("m", {"man", "boy"}), ("f", {"woman", "girl"}))
        if parts & words
    }


READERS = {
    "crows_pairs": _crows_pairs,
    "winogender": _winogender,
    "winobias": _winobias,
    "stereoset": _stereoset,
    "bbq": _bbq,
}


def template_items(blocks: Sequence[dict[str, Any]]) -> list[Item]:
    """A pair for each text of a block and each combination of its `fill` words: {name} in a text
    stands for a word of `fill`, or for what `more` (the stereotype) and `less` put there.

    Raises InputError: another key, a name without words, `more` equal to `less`.
    """
    items = []
    for i, block in enumerate(blocks, 1):
        fill, texts = _checked_block(i, block)
        for words, text in itertools.product(itertools.product(*fill.values()), texts):
            try:
                pair = [
                    text.format(**dict(zip(fill, words, strict=True)), **block[side])
                    for side in ("more", "less")
                ]
            except (LookupError, ValueError, TypeError) as error:
                raise InputError(
                    f"templates: block {i}: {text!r} cannot be filled ({error}); give its names in "
                    "more and less, or in fill"
                ) from None
            if pair[0] == pair[1]:
                raise InputError(
                    f"templates: block {i}: more and less both give {pair[0]!r}; let them differ"
                )
            items.append(
                Item(f"block {i}", str(block["group"]), " ".join(map(str, words)) or text, "", pair)
            )
    return items


def _checked_block(i: int, block: dict[str, Any]) -> tuple[dict[str, list], list[str]]:
    """What fills the names of a block, and its texts; a single value is a list of one."""
    needed = {"group", "texts", "more", "less"}
    if not needed <= block.keys() <= needed | {"fill"}:
        raise InputError(
            f"templates: block {i} has {', '.join(block)}; expected {', '.join(sorted(needed))} "
            "and perhaps fill"
        )
    fill = block.get("fill") or {}
    for name, value in (("more", block["more"]), ("less", block["less"]), ("fill", fill)):
        if not isinstance(value, dict):
            raise InputError(
                f"templates: block {i}: {name} is {value!r}; it cannot be filled in, expected "
                "names and words, such as {who: she}"
            )
    lists = {name: words if isinstance(words, list) else [words] for name, words in fill.items()}
    texts = block["texts"] if isinstance(block["texts"], list) else [block["texts"]]
    if not texts or not all(isinstance(text, str) for text in texts) or not all(lists.values()):
        raise InputError(
            f"templates: block {i}: expected texts, and at least one word for each name of fill"
        )
    return lists, texts


def unaligned(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Pairs that do not differ in just the places that are marked: place, group, texts, and where
    they differ.
    """
    found = []
    for item in items:
        more, less = map(_words_and_signs, item.choices[:2])
        codes = difflib.SequenceMatcher(None, more, less, autojunk=False).get_opcodes()
        spans = [
            [" ".join(more[a:b]), " ".join(less[c:d])]
            for kind, a, b, c, d in codes
            if kind != "equal"
        ]
        if item.spans is not None and len(spans) != item.spans:
            found.append(
                {
                    "place": item.place,
                    "group": item.group,
                    "texts": item.choices[:2],
                    "differ_in": spans,
                }
            )
    return found


def _words_and_signs(text: str) -> list[str]:
    """The words of a text with the marks on their letters, and each punctuation character."""
    parts = WORD_OR_SIGN.findall(unicodedata.normalize("NFC", text))
    return [word for part in parts for word in find_words(part) or [part]]

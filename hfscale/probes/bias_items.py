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

# A word in any script, or one character that is none: "she's, late" is she's / , / late.
WORD_OR_SIGN = regex.compile(rf"(?:{RUN.pattern}) | \S", regex.X)


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


def as_examples(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Rows that `score_choices` reads, as a task of multiple choice has them."""
    return [
        {"prompt": item.prompt, "choices": item.choices, "answer": item.answer} for item in items
    ]


def read_items(paths: Sequence[str], kind: str) -> list[Item]:
    """Items of files (plain, .gz or .zst) in the format `kind`, one of `READERS`.

    Raises InputError: no such file, another format, a column that is missing, an empty text, or
    nothing in it.
    """
    items: list[Item] = []
    for path in map(Path, paths):
        with reading(f"pairs {path}"):
            items_of_file = _read_format(path, kind)
        empty = [item.place for item in items_of_file if _has_empty_text(item)]
        if empty or not items_of_file:
            problem = f"{empty[0]} has an empty text" if empty else "no pairs in it"
            raise InputError(f"pairs {path}: {problem}; expected the format {kind}")
        items += items_of_file
    return items


def _read_format(path: Path, kind: str) -> list[Item]:
    """The items of one file; raises InputError: it has another format."""
    next_step = f"mend it or set pairs_format to one of {', '.join(READERS)}"
    try:
        return list(READERS[kind](path))
    except (KeyError, TypeError) as error:
        raise InputError(
            f"pairs {path}: not in the format {kind}, {error} is missing or of another kind; "
            f"{next_step}"
        ) from None
    except IndexError:
        raise InputError(f"pairs {path}: not in the format {kind}; {next_step}") from None


def _has_empty_text(item: Item) -> bool:
    return not all(text and text.strip() for text in (item.group, *item.choices))


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
        if ".male." not in name:
            continue
        # technician.customer.1.male.txt: the pronoun is the occupation (0) or the other (1).
        occupation, _, answer, *_ = name.split(".")
        _, female = sentences[name.replace(".male.", ".female.")]
        majority = "women" if shares[occupation] > 50 else "men"
        pair = [female, male] if majority == "women" else [male, female]
        person = "other person" if answer == "1" else "job"
        group = f"mostly {majority}, pronoun is the {person}"
        yield Item(f"{path.name}{line}", group, occupation, "", pair, spans=1)


def _winobias(path: Path) -> Iterator[Item]:
    """pro_stereotyped_*, with anti_stereotyped_* beside it, line by line; [brackets] mark persons
    and pronouns.
    """
    pro = read_text(path).splitlines()
    anti = read_text(path.with_name(path.name.replace("pro_", "anti_", 1))).splitlines()
    for i, (pro_line, anti_line) in enumerate(zip(pro, anti, strict=True), 1):
        pro_marks = _marked(pro_line)
        anti_marks = _marked(anti_line)
        differing = [a != b for a, b in zip(pro_marks, anti_marks, strict=False)]
        yield Item(
            f"{path.name}:{i}",
            path.name,
            pro_marks[0],
            "",
            [_unmarked(pro_line), _unmarked(anti_line)],
            spans=sum(differing),
        )


def _marked(line: str) -> list[str]:
    """Persons and pronouns: "1 [The developer] argued with the designer because [she] ..." gives
    developer and she.
    """
    return re.findall(r"\[(?:[Tt]he )?(.*?)\]", line)


def _unmarked(line: str) -> str:
    """The sentence without its number and brackets."""
    return re.sub(r"^\d+ |[\[\]]", "", line)


def _stereoset(path: Path) -> Iterator[Item]:
    for _, row in read_rows(path, ".json"):
        for kind, examples in row["data"].items():
            for example in examples:
                yield _stereoset_item(path, example, follows_context=kind == "intersentence")


def _stereoset_item(path: Path, example: dict[str, Any], *, follows_context: bool) -> Item:
    """Either the choices are whole sentences after the context, or the context with its blank
    filled.
    """
    space = " " if follows_context else ""
    texts = {
        sentence["gold_label"]: space + sentence["sentence"] for sentence in example["sentences"]
    }
    return Item(
        f"{path.name} {example['id']}",
        example["bias_type"],
        example["target"],
        example["context"] if follows_context else "",
        [texts[label] for label in ("stereotype", "anti-stereotype", "unrelated")],
        spans=None if follows_context else 1,
    )


def _bbq(path: Path) -> Iterator[Item]:
    """Biased is the stereotyped group as answer to a question with negative polarity, and another
    to the others.
    """
    names = ("ans0", "ans1", "ans2")
    for line, row in read_rows(path, ".jsonl"):
        target = _group_names(row["additional_metadata"]["stereotyped_groups"])
        is_negative = row["question_polarity"] == "neg"
        kinds = []
        for name in names:
            groups = _group_names(row["answer_info"][name])
            if "unknown" in groups:
                kinds.append("unknown")
            elif bool(groups & target) == is_negative:
                kinds.append("biased")
            else:
                kinds.append("counter")
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
    parts = set()
    for name in names:
        parts |= {part.replace(" ", "").lower() for part in (name, *re.split("[-_]", name))}
    if parts & {"man", "boy"}:
        parts.add("m")
    if parts & {"woman", "girl"}:
        parts.add("f")
    return parts


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
        place = f"templates: block {i}"
        fill, texts = _checked_block(place, block)
        for words, text in itertools.product(itertools.product(*fill.values()), texts):
            filling = dict(zip(fill, words, strict=True))
            more = _filled(place, text, filling, block["more"])
            less = _filled(place, text, filling, block["less"])
            if more == less:
                raise InputError(f"{place}: more and less both give {more!r}; let them differ")
            cluster = " ".join(map(str, words)) or text
            items.append(Item(f"block {i}", str(block["group"]), cluster, "", [more, less]))
    return items


def _filled(place: str, text: str, filling: dict[str, Any], side: dict[str, Any]) -> str:
    """The text with the words of `fill` and of one side; raises InputError: a name has none."""
    try:
        return text.format(**filling, **side)
    except (LookupError, ValueError, TypeError) as error:
        raise InputError(
            f"{place}: {text!r} cannot be filled ({error}); give its names in more and less, or in "
            "fill"
        ) from None


def _checked_block(place: str, block: dict[str, Any]) -> tuple[dict[str, list], list[str]]:
    """What fills the names of a block, and its texts; a single value is a list of one."""
    needed = {"group", "texts", "more", "less"}
    if not needed <= block.keys() <= needed | {"fill"}:
        raise InputError(
            f"{place} has {', '.join(block)}; expected {', '.join(sorted(needed))} and perhaps fill"
        )
    fill = block.get("fill") or {}
    for name, value in (("more", block["more"]), ("less", block["less"]), ("fill", fill)):
        if not isinstance(value, dict):
            raise InputError(
                f"{place}: {name} is {value!r}; it cannot be filled in, expected names and words, "
                "such as {who: she}"
            )
    lists = {name: _as_list(words) for name, words in fill.items()}
    texts = _as_list(block["texts"])
    if not texts or not all(isinstance(text, str) for text in texts) or not all(lists.values()):
        raise InputError(f"{place}: expected texts, and at least one word for each name of fill")
    return lists, texts


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def unaligned(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Pairs that do not differ in just the places that are marked: place, group, texts, and where
    they differ.
    """
    records = []
    for item in items:
        spans = _differing_spans(*item.choices[:2])
        if item.spans is not None and len(spans) != item.spans:
            records.append(
                {
                    "place": item.place,
                    "group": item.group,
                    "texts": item.choices[:2],
                    "differ_in": spans,
                }
            )
    return records


def _differing_spans(first: str, second: str) -> list[list[str]]:
    """[words of the first, words of the second] of each place where the texts differ."""
    first_words = _words_and_signs(first)
    second_words = _words_and_signs(second)
    matcher = difflib.SequenceMatcher(None, first_words, second_words, autojunk=False)
    return [
        [" ".join(first_words[a:b]), " ".join(second_words[c:d])]
        for kind, a, b, c, d in matcher.get_opcodes()
        if kind != "equal"
    ]


def _words_and_signs(text: str) -> list[str]:
    """The words of a text with the marks on their letters, and each punctuation character."""
    parts = WORD_OR_SIGN.findall(unicodedata.normalize("NFC", text))
    return [word for part in parts for word in find_words(part) or [part]]

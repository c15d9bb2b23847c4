"""Task sets that need no download: made from CLDR, read from the standard library, or from a few
templates.
"""

import ast
import datetime
import hashlib
import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from babel import Locale, dates, lists, numbers, units
from babel import __version__ as VERSION
from datasets import Dataset, DatasetDict

from hfscale.data.sources import load_documents
from hfscale.process import InputError

GENERATED_EXAMPLES = 20_000  # unless the user asks for another number
HELD_OUT_BYTES = 32  # keys whose hash begins with a byte below it, one of eight, are held out
MAX_ANSWER_CHARACTERS = 60
SWAPPED_COPIES = 10  # of each summary to learn from, each with other words in the place of some
SWAP_SHARE = 0.6  # of the words that a summary shares with the names
UNITS = (
    "length-kilometer",
    "length-meter",
    "mass-kilogram",
    "volume-liter",
    "duration-hour",
    "duration-minute",
    "digital-megabyte",
    "temperature-celsius",
    "speed-kilometer-per-hour",
    "area-hectare",
    "power-watt",
)
CURRENCIES = ("EUR", "USD", "GBP", "JPY", "CHF", "SEK", "PLN", "INR", "BRL", "CAD")
NAMES = (
    "Ada Ben Clara David Emma Felix Greta Hugo Ines Jonas Karla Leo Mira Nora Oskar Paula Rosa "
    "Simon Tara Udo Vera Willi Xenia Yann Zoe"
).split()
CITIES = (
    "Oslo Rome Paris Lima Quito Cairo Delhi Tokyo Seoul Dakar Accra Riga Minsk Sofia Bern Perth "
    "Havana"
).split()
JOBS = (
    "nurse pilot baker farmer teacher lawyer painter plumber singer tailor carpenter dentist "
    "librarian"
).split()
PETS = "cat dog horse parrot rabbit goat tortoise pony hamster goose duck donkey".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
WORD = re.compile("[A-Za-z]{3,}")  # that a summary can share with a name
# statement, question, yes/no question, values
FACTS = (
    ("{name} lives in {value}.", "Where does {name} live?", "Does {name} live in {value}?", CITIES),
    ("{name} is a {value}.", "What is {name}'s job?", "Is {name} a {value}?", JOBS),
    ("{name} owns a {value}.", "Which animal does {name} own?", "Does {name} own a {value}?", PETS),
)


def embedded_examples(
    name: str, *, train_examples: int | None, validation_examples: int, seed: int
) -> DatasetDict:
    """The set `embedded:<name>` as `train` and `validation`; each example's key decides its part,
    so no key (a value, a fact sheet, a signature) that is held out occurs in training.

    Translation, question answering and dialogue are made, without end, from `seed`; summarization
    and code are read from the standard library of the Python at hand and have as many as it holds.
    Summaries to learn from come again with words swapped (see `_swap_words`); those held out are
    all as they were read.

    Raises:
        InputError: an unknown name (the known ones are listed).
    """
    makers = {
        "translation-en-de": partial(_translations, language="de"),
        "dialogue": _dialogues,
        "translation-en-fr": partial(_translations, language="fr"),
        "question-answering": _questions,
        "summarization": _summaries,
        "code": _one_statement_functions,
    }
    if name not in makers:
        known = ", ".join(f"embedded:{known}" for known in makers)
        raise InputError(f"task_source embedded:{name}: unknown; there are {known}")
    limits = {"train": train_examples or GENERATED_EXAMPLES, "validation": validation_examples}
    rows = Dataset.from_generator(
        _rows,
        gen_kwargs={
            "maker": makers[name],
            "seed": seed,
            "limits": limits,
            "stamp": (
                sys.version,
                VERSION,
                hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
            ),
        },
    )
    parts = {
        part: rows.filter(
            lambda of, part=part: of == part, input_columns="part", desc=f"Held apart: {part}"
        )
        for part in limits
    }
    return DatasetDict(parts).remove_columns("part")


def _rows(maker: Callable, seed: int, limits: dict[str, int], stamp: tuple) -> Iterator[dict]:
    """Different rows up to the limits, each with its part. `stamp` only keys the cache: the text
    depends on Python, Babel's CLDR and this module.
    """
    left, seen = dict(limits), set()
    for key, row in maker(random.Random(seed)):
        part = "validation" if _is_held_out(key) else "train"
        if left[part] and (text := repr(row)) not in seen:
            seen.add(text)
            left[part] -= 1
            yield row | {"part": part}
        if not any(left.values()):
            return


def _is_held_out(key: str) -> bool:
    return hashlib.sha256(key.encode()).digest()[0] < HELD_OUT_BYTES


def _translations(rng: random.Random, language: str) -> Iterator[tuple[str, dict]]:
    """The same value in the words of two locales. The key is the day, number or names, whatever the
    format.
    """
    while True:
        value = rng.choice((_date, _date, _number, _number, _names))(rng)
        form = rng.random(), rng.random()
        key = str(value.date() if isinstance(value, datetime.datetime) else value)
        yield key, {"en": _written(value, form, "en"), "other": _written(value, form, language)}


def _date(rng: random.Random) -> datetime.datetime:
    return datetime.datetime(1900, 1, 1) + datetime.timedelta(
        minutes=rng.randrange(200 * 365 * 24 * 60)
    )


def _number(rng: random.Random) -> float:
    return round(10 ** rng.uniform(0.5, 6.5), rng.choice((0, 0, 1, 2)))


def _names(rng: random.Random) -> tuple[str, ...]:
    kind = rng.choice(("territories", "languages"))
    known = [set(getattr(Locale(locale), kind)) for locale in ("en", "de", "fr")]
    codes = sorted(code for code in set.intersection(*known) if code.isalpha() and len(code) == 2)
    return kind, *rng.sample(codes, 3)


def _written(
    value: datetime.datetime | float | tuple, form: tuple[float, float], locale: str
) -> str:
    """`form`, two numbers from 0 to 1, picks one of the formats for this type of value."""

    def pick(options: tuple) -> str:
        return options[int(form[1] * len(options))]

    if isinstance(value, tuple):
        names = getattr(Locale(locale), value[0])
        return lists.format_list(
            [names[code] for code in value[1:]], pick(("standard", "or")), locale
        )
    if isinstance(value, datetime.datetime):
        if (
            form[0] < 0.7
        ):  # never both long and medium, which differ in German but in English not in May
            return dates.format_date(value, pick(("full", "long", "short")), locale)
        date = dates.format_date(value, pick(("full", "medium", "short")), locale)
        return f"{date}, {dates.format_time(value, 'short', locale=locale)}"
    if form[0] < 0.4:
        return units.format_unit(value, pick(UNITS), "long", locale=locale)
    if form[0] < 0.7:
        return numbers.format_currency(value, pick(CURRENCIES), locale=locale, format_type="name")
    return numbers.format_decimal(value, locale=locale)


def _questions(rng: random.Random) -> Iterator[tuple[str, dict]]:
    """Short texts about three people; a third of the questions is answered yes or no, the others by
    words of the text. The key is the text.
    """
    while True:
        people = rng.sample(NAMES, 3)
        facts = [
            (name, fact, rng.choice(fact[3])) for name in people for fact in rng.sample(FACTS, 2)
        ]
        rng.shuffle(facts)
        context = " ".join(fact[0].format(name=name, value=value) for name, fact, value in facts)
        name, fact, value = rng.choice(facts)
        question, answer = fact[1].format(name=name), value
        if rng.random() < 1 / 3:
            others = [other for _, kind, other in facts if kind is fact and other != value] or fact[
                3
            ]
            asked = value if rng.random() < 0.5 else rng.choice(others)
            question, answer = (
                fact[2].format(name=name, value=asked),
                "yes" if asked == value else "no",
            )
        yield context, {"context": context, "question": question, "answer": answer}


def _dialogues(rng: random.Random) -> Iterator[tuple[str, dict]]:
    """Bookings of one to four turns, each answer a function of what was said. The key is what is
    booked by whom.
    """
    while True:
        name, city, number = rng.choice(NAMES), rng.choice(CITIES), rng.randint(2, 40)
        (day, later), thing = rng.sample(DAYS, 2), rng.choice(("table", "room", "boat", "guide"))
        turns = [
            f"Hello, this is {name}.",
            f"Hello {name}, what can I do for you?",
            f"I need a {thing} for {number} on {day}.",
            f"A {thing} for {number} on {day}. In which city?",
            rng.choice(("{}.", "In {}, please.")).format(city),
            f"Done, {name}: a {thing} for {number} in {city} on {day}.",
            f"Sorry, could you make it {later}?",
            f"Done, {name}: a {thing} for {number} in {city} on {later}.",
        ]
        messages = [
            {"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)
        ]
        yield (
            f"{name} {city} {number} {day} {thing}",
            {"messages": messages[: 2 * rng.randint(1, 4)]},
        )


def _functions(rng: random.Random) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of the standard library and the name of its class ("" outside), in random
    order.
    """
    found = []
    for code in load_documents("embedded:python-code")["text"]:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Module | ast.ClassDef):
                found += [
                    (getattr(node, "name", ""), item)
                    for item in node.body
                    if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
                ]
    rng.shuffle(found)
    yield from found


def _signature(owner: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    define = f"def {node.name}({ast.unparse(node.args)}):"
    return f"class {owner}:\n    {define}" if owner else define


def _summaries(rng: random.Random) -> Iterator[tuple[str, dict]]:
    """Names in words, signature, and the rest of the docstring (the code where there is no rest) ->
    the docstring's first sentence or line. The key is that summary.
    """
    learned, held_out = [], set()
    for owner, node in _functions(rng):
        summary, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
        summary = " ".join(summary.split())
        text = rest.strip() or "\n".join(map(ast.unparse, node.body[1:]))
        if summary and text and len(summary) <= MAX_ANSWER_CHARACTERS:
            arguments = " ".join(
                item.arg for item in node.args.args if item.arg not in ("self", "cls")
            )
            row = {
                "signature": _signature(owner, node),
                "text": text,
                "summary": summary,
                "words": " | ".join(map(_words_of, (node.name, owner, arguments))),
            }
            if _is_held_out(summary):
                held_out.add(summary)
            else:
                learned.append((summary, row))
            yield summary, row
    by_length = defaultdict(list)
    for word in sorted({word for _, row in learned for word in WORD.findall(row["words"])}):
        by_length[len(word)].append(word)
    for summary, row in learned * SWAPPED_COPIES:
        swapped = _swap_words(row, by_length, rng)
        if swapped["summary"] not in held_out:
            yield summary, swapped


def _words_of(names: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|[\W_]+", " ", names).lower().strip()


def _swap_words(
    row: dict[str, str], by_length: dict[int, list[str]], rng: random.Random
) -> dict[str, str]:
    """The row with some words that its summary shares with the names swapped for others of the same
    length, wherever they stand: what a summary says is then in what it is made from, not in memory.
    """
    shared = sorted({*WORD.findall(row["words"])} & {*WORD.findall(row["summary"].lower())})
    swaps = {word: rng.choice(by_length[len(word)]) for word in shared if rng.random() < SWAP_SHARE}

    def swap(word: re.Match) -> str:
        new = swaps.get(word[0].lower(), word[0])
        return new.capitalize() if word[0].istitle() else new.upper() if word[0].isupper() else new

    return {name: WORD.sub(swap, text) for name, text in row.items()}


def _one_statement_functions(rng: random.Random) -> Iterator[tuple[str, dict]]:
    """Signature, and first line of the docstring where there is one -> the only statement. The key
    is the `def`.
    """
    for owner, node in _functions(rng):
        doc = ast.get_docstring(node)
        body = node.body[1:] if doc else node.body
        statement = ast.unparse(body[0]) if len(body) == 1 else "\n"
        if "\n" not in statement and len(statement) <= MAX_ANSWER_CHARACTERS:
            hint = f"  # {doc.splitlines()[0]}" if doc else ""
            yield (
                _signature("", node),
                {"declaration": _signature(owner, node) + hint, "body": statement},
            )

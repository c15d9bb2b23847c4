"""Examples made by rule from sample data: translations of values, questions about people, bookings.

The sample data (names, cities, wordings) lies beside the configs of finetune_task, in `made/`.
"""

import datetime
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias, TypedDict

from babel import Locale, dates, lists, numbers, units

from hfscale.tasks.sample_data import load_sample_data

Value: TypeAlias = datetime.datetime | float | tuple[str, ...]

LOCALES = ("en", "de", "fr")  # names that one of them lacks are not translated into any
SHARE_YES_NO = 1 / 3  # of the questions
GUESTS = (2, 40)  # smallest and largest number


class Fact(TypedDict):
    """One kind of statement about a person; `{name}` and `{value}` stand in its texts."""

    statement: str
    question: str
    yes_no_question: str
    values: list[str]


class People(TypedDict):
    """What `people.yaml` holds."""

    names: list[str]
    cities: list[str]
    days: list[str]
    bookable: list[str]
    facts: list[Fact]
    turns: list[list[str]]  # the wordings of each turn


class Formats(TypedDict):
    """What `translation.yaml` holds: units and currencies by their names in CLDR."""

    units: list[str]
    currencies: list[str]


# ---- translation


def translation_maker(language: str) -> Callable[[random.Random], Iterator[tuple[str, dict]]]:
    """Writes values in English (`en`) and in another language (`other`)."""
    formats: Formats = load_sample_data("finetune_task", "translation")
    return partial(_translations, language=language, formats=formats)


def _translations(
    rng: random.Random, language: str, formats: Formats
) -> Iterator[tuple[str, dict[str, str]]]:
    """The same value in the words of two locales. The key is the day, number or names, whatever the
    format.
    """
    while True:
        draw_value = rng.choice((_draw_date, _draw_date, _draw_number, _draw_number, _draw_names))
        value = draw_value(rng)
        style = (rng.random(), rng.random())
        key = str(value.date()) if isinstance(value, datetime.datetime) else str(value)
        row = {
            "en": _write_value(value, style, "en", formats),
            "other": _write_value(value, style, language, formats),
        }
        yield key, row


def _draw_date(rng: random.Random) -> datetime.datetime:
    minutes_in_200_years = 200 * 365 * 24 * 60
    minutes = rng.randrange(minutes_in_200_years)
    return datetime.datetime(1900, 1, 1) + datetime.timedelta(minutes=minutes)


def _draw_number(rng: random.Random) -> float:
    """From about 3 to 3 million, as often small as large."""
    return round(10 ** rng.uniform(0.5, 6.5), rng.choice((0, 0, 1, 2)))


def _draw_names(rng: random.Random) -> tuple[str, ...]:
    """A kind of CLDR's names and three codes of it that all languages have a name for."""
    kind = rng.choice(("territories", "languages"))
    known = [set(getattr(Locale(locale), kind)) for locale in LOCALES]
    shared = set.intersection(*known)
    codes = sorted(code for code in shared if code.isalpha() and len(code) == 2)
    return kind, *rng.sample(codes, 3)


def _write_value(value: Value, style: tuple[float, float], locale: str, formats: Formats) -> str:
    """`style`, two numbers from 0 to 1, picks one of the formats for this type of value."""
    if isinstance(value, tuple):
        return _write_names(value, style[1], locale)
    if isinstance(value, datetime.datetime):
        return _write_date(value, style, locale)
    if style[0] < 0.4:
        unit = _pick(formats["units"], style[1])
        return units.format_unit(value, unit, "long", locale=locale)
    if style[0] < 0.7:
        currency = _pick(formats["currencies"], style[1])
        return numbers.format_currency(value, currency, locale=locale, format_type="name")
    return numbers.format_decimal(value, locale=locale)


def _write_names(value: tuple[str, ...], position: float, locale: str) -> str:
    kind, *codes = value
    names = getattr(Locale(locale), kind)
    style = _pick(("standard", "or"), position)
    return lists.format_list([names[code] for code in codes], style, locale)


def _write_date(value: datetime.datetime, style: tuple[float, float], locale: str) -> str:
    """Never both long and medium in one kind: they differ in German, but in English not in May."""
    if style[0] < 0.7:
        return dates.format_date(value, _pick(("full", "long", "short"), style[1]), locale)
    date = dates.format_date(value, _pick(("full", "medium", "short"), style[1]), locale)
    time = dates.format_time(value, "short", locale=locale)
    return f"{date}, {time}"


def _pick(options: Sequence[Any], position: float) -> Any:
    """The option at a position from 0 to 1."""
    return options[int(position * len(options))]


# ---- questions and dialogues


def question_maker() -> Callable[[random.Random], Iterator[tuple[str, dict]]]:
    """Writes `context`, `question` and `answer`."""
    people: People = load_sample_data("finetune_task", "people")
    return partial(_questions, people=people)


def _questions(rng: random.Random, people: People) -> Iterator[tuple[str, dict[str, str]]]:
    """Short texts about three people; a third of the questions is answered yes or no, the others by
    words of the text. The key is the text.
    """
    while True:
        told = [
            (name, fact, rng.choice(fact["values"]))
            for name in rng.sample(people["names"], 3)
            for fact in rng.sample(people["facts"], 2)
        ]
        rng.shuffle(told)
        context = " ".join(
            fact["statement"].format(name=name, value=value) for name, fact, value in told
        )
        name, fact, value = rng.choice(told)
        question = fact["question"].format(name=name)
        answer = value
        if rng.random() < SHARE_YES_NO:
            # A wrong value is one that the text gives to another person, where there is one.
            wrong_values = [
                told_value
                for _, told_fact, told_value in told
                if told_fact is fact and told_value != value
            ]
            is_right = rng.random() < 0.5
            asked_value = value if is_right else rng.choice(wrong_values or fact["values"])
            question = fact["yes_no_question"].format(name=name, value=asked_value)
            answer = "yes" if asked_value == value else "no"
        yield context, {"context": context, "question": question, "answer": answer}


def dialogue_maker() -> Callable[[random.Random], Iterator[tuple[str, dict]]]:
    """Writes conversations (`messages`)."""
    people: People = load_sample_data("finetune_task", "people")
    return partial(_dialogues, people=people)


def _dialogues(rng: random.Random, people: People) -> Iterator[tuple[str, dict[str, Any]]]:
    """Bookings of one to four questions and answers, each answer a function of what was said. The
    key is what is booked by whom.
    """
    while True:
        # The order of the draws decides the rows: it stays as it is.
        booking: dict[str, Any] = {
            "name": rng.choice(people["names"]),
            "city": rng.choice(people["cities"]),
            "number": rng.randint(*GUESTS),
        }
        booking["day"], booking["later"] = rng.sample(people["days"], 2)
        booking["thing"] = rng.choice(people["bookable"])
        messages = []
        for i, wordings in enumerate(people["turns"]):
            # A draw from one would use up a random number, too.
            wording = wordings[0] if len(wordings) == 1 else rng.choice(wordings)
            role = "user" if i % 2 == 0 else "assistant"
            messages.append({"role": role, "content": wording.format(**booking)})
        num_questions = rng.randint(1, len(messages) // 2)
        yield (
            "{name} {city} {number} {day} {thing}".format(**booking),
            {"messages": messages[: 2 * num_questions]},
        )

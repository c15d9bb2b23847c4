"""Examples read from the functions of Python's standard library: their summaries and statements."""

import ast
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import TypeAlias

from hfscale.data.sources import load_documents
from hfscale.tasks.held_out import is_held_out_key

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef

# A small model learns to write that many within minutes.
MAX_ANSWER_CHARACTERS = 60
# Of each summary to learn from, each with other words in the place of some.
SWAPPED_COPIES = 10
# Of the words that a summary shares with the names: so some copies keep one, and few are equal.
SWAP_SHARE = 0.6
# What a summary can share with a name.
WORD = re.compile("[A-Za-z]{3,}")


def read_functions(rng: random.Random) -> Iterator[tuple[str, Function]]:
    """Every function of the standard library after the name of its class ("" outside), in random
    order.
    """
    functions = []
    for code in load_documents("embedded:python-code")["text"]:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Module | ast.ClassDef):
                owner = getattr(node, "name", "")
                functions += [(owner, item) for item in node.body if isinstance(item, Function)]
    rng.shuffle(functions)
    yield from functions


def _signature(owner: str, function: Function) -> str:
    define = f"def {function.name}({ast.unparse(function.args)}):"
    return f"class {owner}:\n    {define}" if owner else define


# ---- summarization


def summaries(rng: random.Random) -> Iterator[tuple[str, dict[str, str]]]:
    """Names in words, signature, and the rest of the docstring (the code where there is no rest) ->
    the docstring's first sentence or line. The key is that summary.

    First all as they were read, then those to learn from with words swapped.
    """
    learned = []
    held_out = set()
    for owner, function in read_functions(rng):
        row = _summary_row(owner, function)
        if row is None:
            continue
        summary = row["summary"]
        if is_held_out_key(summary):
            held_out.add(summary)
        else:
            learned.append(row)
        yield summary, row
    words_by_length = _words_by_length(learned)
    for row in learned * SWAPPED_COPIES:
        swapped = swap_words(row, words_by_length, rng)
        if swapped["summary"] not in held_out:
            yield row["summary"], swapped


def _summary_row(owner: str, function: Function) -> dict[str, str] | None:
    """None: nothing that could be summarized, or too long a summary."""
    first_part, _, rest = (ast.get_docstring(function) or "").partition("\n\n")
    summary = " ".join(first_part.split())
    text = rest.strip() or "\n".join(map(ast.unparse, function.body[1:]))
    if not summary or not text or len(summary) > MAX_ANSWER_CHARACTERS:
        return None
    arguments = [item.arg for item in function.args.args if item.arg not in ("self", "cls")]
    names = (function.name, owner, " ".join(arguments))
    return {
        "signature": _signature(owner, function),
        "text": text,
        "summary": summary,
        "words": " | ".join(map(_words_of, names)),
    }


def _words_of(names: str) -> str:
    """The words of identifiers: `readLine of_file` becomes `read line of file`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|[\W_]+", " ", names).lower().strip()


def _words_by_length(rows: list[dict[str, str]]) -> dict[int, list[str]]:
    words = set()
    for row in rows:
        words.update(WORD.findall(row["words"]))
    by_length = defaultdict(list)
    for word in sorted(words):
        by_length[len(word)].append(word)
    return by_length


def swap_words(
    row: dict[str, str], words_by_length: dict[int, list[str]], rng: random.Random
) -> dict[str, str]:
    """The row with some words that its summary shares with the names swapped for others of the same
    length, wherever they stand: what a summary says is then in what it is made from, not in memory.
    """
    in_names = set(WORD.findall(row["words"]))
    in_summary = set(WORD.findall(row["summary"].lower()))
    swaps = {
        word: rng.choice(words_by_length[len(word)])
        for word in sorted(in_names & in_summary)
        if rng.random() < SWAP_SHARE
    }

    def swap(match: re.Match) -> str:
        word = match[0]
        new_word = swaps.get(word.lower(), word)
        if word.istitle():
            return new_word.capitalize()
        return new_word.upper() if word.isupper() else new_word

    return {name: WORD.sub(swap, text) for name, text in row.items()}


# ---- code


def one_statement_functions(rng: random.Random) -> Iterator[tuple[str, dict[str, str]]]:
    """Signature, and first line of the docstring where there is one -> the only statement. The key
    is the `def`.
    """
    for owner, function in read_functions(rng):
        docstring = ast.get_docstring(function)
        body = function.body[1:] if docstring else function.body
        if len(body) != 1:
            continue
        statement = ast.unparse(body[0])
        if "\n" in statement or len(statement) > MAX_ANSWER_CHARACTERS:
            continue
        hint = f"  # {docstring.splitlines()[0]}" if docstring else ""
        declaration = _signature(owner, function) + hint
        yield _signature("", function), {"declaration": declaration, "body": statement}

"""Examples from every source: embedded sets, the usual file formats, real files; and what is
refused.
"""

import ast
import datetime
import gzip
import json
import random
import re

import pytest
from babel.dates import format_date
from babel.numbers import format_currency
from datasets import Dataset

from hfscale.arguments import TaskArguments
from hfscale.process import InputError
from hfscale.tasks.embedded import embedded_examples
from hfscale.tasks.examples import baseline_answers, example_texts, load_task
from hfscale.tasks.sample_data import load_sample_data
from hfscale.tasks.standard_library import read_functions, swap_words


def write(path, text: str) -> str:
    path.write_text(text, "utf-8")
    return str(path)


def jsonl(path, rows: list) -> str:
    return write(path, "\n".join(json.dumps(row) for row in rows) + "\n")


def load(source: str | list[str], **settings):
    """All examples of a small source: it is given as training and as validation part."""
    sources = [source] if isinstance(source, str) else source
    settings = {"prompt": "{q}", "target": "{a}"} | settings
    args = TaskArguments(task_source=sources, task_validation_source=sources, **settings)
    return sorted(load_task(args, seed=0)["validation"], key=lambda row: row["prompt"])


# ---- formats


def test_columns_of_jsonl_json_and_csv_fill_the_templates(tmp_path):
    rows = [
        {"q": "one", "a": "1", "more": {"deep": 7}},
        {"q": "two", "a": "2", "more": {"deep": 8}},
    ]
    sources = [
        jsonl(tmp_path / "rows.jsonl", rows),
        write(tmp_path / "rows.json", json.dumps(rows, indent=1)),
    ]
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress((tmp_path / "rows.jsonl").read_bytes()))
    expected = [("Say one (7): ", " 1!", "one"), ("Say two (8): ", " 2!", "two")]
    for source in [*sources, str(tmp_path / "rows.jsonl.gz")]:
        made = load(source, prompt="Say {q} ({more.deep}): ", target=" {a}!", baseline_input="{q}")
        assert [(row["prompt"], row["target"], row["source"]) for row in made] == expected
        assert [row["references"] for row in made] == [[" 1!"], [" 2!"]]
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for source in ("rows.parquet", "saved"):
        made = load(str(tmp_path / source), prompt="{q} {more.deep}")
        assert [row["prompt"] for row in made] == ["one 7", "two 8"]
    made = load(write(tmp_path / "rows.TSV", "q\ta\none\t1, or\n"))
    assert (made[0]["prompt"], made[0]["target"]) == ("one", "1, or")
    made = load(write(tmp_path / "rows.csv", 'q,a\r\none,"1, or\nI"\r\n'))
    assert (made[0]["prompt"], made[0]["target"]) == ("one", "1, or\nI")


def test_a_column_of_several_answers_gives_references_and_one_of_texts_is_joined(tmp_path):
    [row] = load(
        jsonl(tmp_path / "rows.jsonl", [{"q": ["A.", "B."], "a": ["x", "y"]}]), target="<{a}>"
    )
    assert (row["prompt"], row["target"], row["references"]) == ("A. B.", "<x>", ["<x>", "<y>"])


def test_parallel_text(tmp_path):
    sides = [
        write(tmp_path / "en.txt", "one\ntwo\u2028more\n"),
        write(tmp_path / "de.txt", "eins\nzwei\n"),
    ]
    made = load(sides, task_format="parallel", prompt="{source}", target="{target}")
    assert [(row["prompt"], row["target"]) for row in made] == [
        ("one", "eins"),
        ("two\u2028more", "zwei"),
    ]


def test_squad_of_both_versions(tmp_path):
    qas = [
        {
            "id": "1",
            "question": "Q1?",
            "answers": [{"text": "b", "answer_start": 2}, {"text": "b"}, {"text": "c"}],
        },
        {"id": "2", "question": "Q2?", "is_impossible": True, "answers": []},
    ]
    data = {
        "version": "v2.0",
        "data": [{"title": "t", "paragraphs": [{"context": "a b c", "qas": qas}]}],
    }
    made = load(
        write(tmp_path / "dev.json", json.dumps(data)),
        task_format="squad",
        prompt="{question} {context}",
        target="{answers}",
    )
    assert [(row["prompt"], row["references"]) for row in made] == [
        ("Q1? a b c", ["b", "c"]),
        ("Q2? a b c", ["no answer"]),
    ]


def test_instructions_in_their_three_forms(tmp_path):
    rows = [
        {"prompt": "P", "response": "r"},
        {"instruction": "I", "input": "", "output": "o"},
        {
            "instruction": "J",
            "instances": [{"input": "x", "output": "1"}, {"input": "y", "output": "2"}],
        },
    ]
    made = load(
        jsonl(tmp_path / "rows.jsonl", rows),
        task_format="instructions",
        prompt="{prompt}",
        target="{response}",
    )
    assert [(row["prompt"], row["target"]) for row in made] == [
        ("I", "o"),
        ("J\n\nx", "1"),
        ("J\n\ny", "2"),
        ("P", "r"),
    ]


def test_conversations_in_their_three_forms(tmp_path):
    rows = [
        {
            "messages": [
                {"role": "system", "content": "S"},
                {"role": "user", "content": "1"},
                {"role": "assistant", "content": "a"},
            ]
        },
        {"conversations": [{"from": "human", "value": "2"}, {"from": "gpt", "value": "b"}]},
        {"turns": [["USER", "3"], ["ASSISTANT", "c"], ["USER", "4"], ["ASSISTANT", "d"]]},
    ]
    made = sorted(
        load(jsonl(tmp_path / "rows.jsonl", rows), task_format="chat"),
        key=lambda row: row["target"],
    )
    assert [row["target"] for row in made] == ["a", "b", "d"] and [
        row["source"] for row in made
    ] == ["1", "2", "4"]
    assert [turn["role"] for turn in made[0]["messages"]] == ["system", "user", "assistant"]
    assert [turn["content"] for turn in made[2]["messages"]] == ["3", "c", "4", "d"]


def test_multiple_choice_and_tests_of_programs(tmp_path):
    [row] = load(
        jsonl(
            tmp_path / "rows.jsonl", [{"q": "?", "options": ["x", "y"], "gold": 1, "t": ["A", "B"]}]
        ),
        target=None,
        choices="options",
        label="gold",
        test_code="{t}\ncheck()",
    )
    assert (row["target"], row["choices"], row["answer"], row["test"]) == (
        " y",
        ["x", "y"],
        1,
        "A\nB\ncheck()",
    )


@pytest.mark.parametrize(
    "prompt, kept, target",
    [
        ("{q} Answer:", "? Answer:", " y"),
        ("{q} Answer: ", "? Answer:", " y"),
        ("{q}\n", "?\n", "y"),
    ],
)
def test_a_choice_is_learned_with_the_space_that_scoring_puts_before_it(
    tmp_path, prompt, kept, target
):
    [row] = load(
        jsonl(tmp_path / "rows.jsonl", [{"q": "?", "options": ["x", "y"], "answer": 1}]),
        prompt=prompt,
        target=None,
        choices="options",
    )
    assert (row["prompt"], row["target"], row["choices"]) == (kept, target, ["x", "y"])


# ---- columns of any name, programs, conversations of questions and answers


def test_columns_of_any_name_and_kind(tmp_path):
    row = {
        "Question Text": "Is {x} 1?",
        "label-id": 3,
        "a.b": 0.5,
        "größe": True,
        "meta": {"no": [7, {"deep": "d"}]},
        "none": None,
        "tags": ["x", 2],
    }
    template = 'Q {Question Text} {label-id} {a.b} {größe} {meta.no.0} {meta.no.1.deep} [{none}] {tags} {"k": 1} {}\n'
    [made] = load(
        jsonl(tmp_path / "rows.jsonl", [row]), prompt=template, target="{label-id}: {tags}"
    )
    assert made["prompt"] == 'Q Is {x} 1? 3 0.5 True 7 d [] x 2 {"k": 1} {}\n'
    assert made["references"] == ["3: x", "3: 2"]
    assert json.loads(made["columns"]) == {
        "Question Text": "Is {x} 1?",
        "label-id": "3",
        "a.b": "0.5",
        "größe": "True",
        "meta.no.0": "7",
        "meta.no.1.deep": "d",
        "none": "",
        "tags": "x 2",
    }
    table = write(tmp_path / "rows.csv", "Question Text,is correct?,No.\nWhy,yes,1\n")
    [made] = load(table, prompt="{Question Text} {No.}", target="{is correct?}")
    assert (made["prompt"], made["target"]) == ("Why 1", "yes")


def test_a_column_that_some_rows_lack_is_missed_there_whatever_its_name(tmp_path):
    rows = [{"Question Text": "x", "a": "y"}, {"Question": "x", "a": "y"}]
    with pytest.raises(
        InputError, match="rows.jsonl:2: no column 'Question Text'; it has Question, a"
    ):
        load(jsonl(tmp_path / "rows.jsonl", rows), prompt="{Question Text}")


PROGRAM = {
    "prompt": "def f(a):\n",
    "body": "    return a",
    "tests": ["assert f(1) == 1", "assert f(2) == 2"],
}


@pytest.mark.parametrize(
    ("settings", "program"),
    [
        (
            {
                "prompt": "{prompt}",
                "target": "{body}",
                "test_program": "{prompt}{prediction}\n{tests}",
            },
            (["def f(a):\n", "\n"], "assert f(1) == 1\nassert f(2) == 2"),
        ),
        # a column as it was read goes before the template of that name; {test} is the template
        (
            {"prompt": "Complete:\n{prompt}", "target": "{body}", "test_code": "{tests}\nassert f"},
            (["def f(a):\n", "\n"], "assert f(1) == 1\nassert f(2) == 2\nassert f"),
        ),
        (
            {
                "prompt": "{prompt}",
                "target": "{body}",
                "test_program": "{prompt}{prediction}\n{tests}",
                "tests_apart": False,
            },
            (["def f(a):\n", "\nassert f(1) == 1\nassert f(2) == 2"], ""),
        ),
        (
            {
                "prompt": "Complete:\n{prompt}",
                "target": "{body} + 0",
                "test_program": "{prompt}{target}\n{tests.1}",
            },
            (["def f(a):\n    return a + 0\n"], "assert f(2) == 2"),
        ),
        (
            {
                "prompt": "{body}",
                "target": "{tests.0}",
                "test_program": "x = {'a': {1: 2}}\n{prediction}{prediction}",
            },
            (["x = {'a': {1: 2}}\n", "", ""], ""),
        ),
    ],
)
def test_a_program_is_built_from_the_columns_as_they_were_read(tmp_path, settings, program):
    [row] = load(jsonl(tmp_path / "rows.jsonl", [PROGRAM]), metrics=["pass_at_k"], **settings)
    assert (row["program"], row["program_tests"]) == program


def test_without_a_column_the_filled_templates_are_in_the_program(tmp_path):
    rows = [{"ask": "def f():\n", "body": "    return 1", "check": "assert f() == 1"}]
    [row] = load(
        jsonl(tmp_path / "rows.jsonl", rows),
        metrics=["pass_at_k"],
        prompt="# do\n{ask}",
        target="{body}",
        test_code="{check}",
    )
    assert (row["program"], row["program_tests"]) == (["# do\ndef f():\n", "\n"], "assert f() == 1")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            "{bodi}{prediction}",
            ":1: no column 'bodi'; it has prompt, body, tests; did you mean body",
        ),
        (
            "{prompt}{prediction}\n{test}",
            ":1: no column 'test'; it has prompt, body, tests; did you mean tests",
        ),
    ],
)
def test_what_a_program_lacks_is_said_when_it_is_read(tmp_path, program, message):
    source = jsonl(tmp_path / "rows.jsonl", [PROGRAM])
    with pytest.raises(InputError, match=message):
        load(
            source, metrics=["pass_at_k"], prompt="{prompt}", target="{body}", test_program=program
        )
    load(
        source, metrics=["exact_match"], prompt="{prompt}", target="{body}", test_program=program
    )  # it is not run


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ({"prompt": "q\n", "response": "r"}, {}),
        ({"instruction": "q", "input": "", "output": "r"}, {"task_format": "instructions"}),
        ({"question": "q", "answer": "r"}, {}),
        ({"prompt": "q\n\n", "completion": " r\n"}, {}),
        (
            {"ask": "q", "say": "r"},
            {"prompt": "{ask}\n", "target": "{say}", "chat_template": "chatml"},
        ),
        ({"messages": [["user", "q"], ["assistant", "r"]]}, {"task_format": "chat"}),
    ],
)
def test_questions_and_answers_become_conversations(tmp_path, row, settings):
    [made] = load(
        jsonl(tmp_path / "rows.jsonl", [row]), **{"prompt": None, "target": None, **settings}
    )
    assert made["messages"] == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "r"},
    ]
    assert (made["prompt"], made["target"], made["references"]) == ("", "r", ["r"])


def test_code_in_a_conversation_keeps_its_indentation(tmp_path):
    [made] = load(
        jsonl(
            tmp_path / "rows.jsonl", [{"prompt": "\n def f():\n", "completion": "    return 1\n\n"}]
        ),
        prompt=None,
        target=None,
    )
    assert [turn["content"] for turn in made["messages"]] == [" def f():", "    return 1"]


def test_a_conversation_of_squad_and_of_a_system_prompt(tmp_path):
    qas = [{"id": "1", "question": "Q?", "answers": [{"text": "b"}, {"text": "c"}]}]
    source = write(
        tmp_path / "dev.json",
        json.dumps({"data": [{"paragraphs": [{"context": "a b c", "qas": qas}]}]}),
    )
    [made] = load(source, task_format="squad", prompt=None, target=None)
    assert made["messages"][0]["content"] == "Q?\n\na b c" and made["references"] == ["b", "c"]
    [made] = load(
        jsonl(tmp_path / "rows.jsonl", [{"system": "s", "prompt": "q", "response": "r"}]),
        prompt=None,
        target=None,
    )
    assert [turn["role"] for turn in made["messages"]] == ["system", "user", "assistant"]


def test_real_instructions_become_conversations(real_data):
    for name, settings, counted in (
        ("dolly_small/*.jsonl.gz", {}, 1000),
        ("self_instruct/seed_tasks.jsonl", {"task_format": "instructions"}, 0),
    ):
        counts = {}
        parts = load_task(
            TaskArguments(task_source=[str(real_data / name)], **settings), seed=0, counts=counts
        )
        assert [turn["role"] for turn in parts["train"][0]["messages"]] == ["user", "assistant"]
        assert sum(count["unframed"] for count in counts.values()) == counted
        assert not any(
            "### Instruction" in row["messages"][0]["content"] for row in parts["validation"]
        )


# ---- splits and baselines


def test_a_tenth_at_most_is_held_out_and_nothing_is_in_both_parts(tmp_path):
    source = [jsonl(tmp_path / "rows.jsonl", [{"q": str(i), "a": "x"} for i in range(50)])]
    args = TaskArguments(task_source=source, prompt="{q}", target="{a}", validation_examples=500)
    parts = load_task(args, seed=3)
    train, validation = (set(parts[name]["prompt"]) for name in ("train", "validation"))
    assert (len(train), len(validation)) == (45, 5) and not train & validation
    other = load_task(args, seed=4)
    assert (
        set(other["validation"]["prompt"]) == validation
    )  # another seed trains in another order on the same
    assert other["train"]["prompt"][:] != load_task(args, seed=3)["train"]["prompt"][:]
    args.train_examples, args.validation_examples = 7, 2
    assert {name: len(part) for name, part in load_task(args, seed=3).items()} == {
        "train": 7,
        "validation": 2,
    }


def test_baselines_and_texts(tmp_path):
    rows = [{"q": "One. Two!", "a": "x"}, {"q": "Three", "a": "y"}, {"q": "Four? Five", "a": "y"}]
    source = [jsonl(tmp_path / "rows.jsonl", rows)]
    parts = load_task(
        TaskArguments(
            task_source=source, task_validation_source=source, prompt="{q}\n", target="{a}"
        ),
        seed=0,
    )
    answers = {
        name: dict(zip(parts["validation"]["prompt"], baseline_answers(name, parts), strict=True))
        for name in ("copy_source", "lead_sentence", "most_frequent")
    }
    assert answers["copy_source"] == {f"{row['q']}\n": row["q"] for row in rows}
    assert set(answers["lead_sentence"].values()) == {"One.", "Three", "Four?"}
    assert set(answers["most_frequent"].values()) == {"y"}
    assert set(example_texts(parts)["train"]["text"]) == {
        "One. Two!\nx",
        "Three\ny",
        "Four? Five\ny",
    }


def test_copies_of_a_row_are_not_on_both_sides(tmp_path):
    source = [jsonl(tmp_path / "rows.jsonl", [{"q": str(i % 12), "a": "x"} for i in range(120)])]
    parts = load_task(
        TaskArguments(task_source=source, prompt="{q}", target="{a}", validation_examples=5), seed=0
    )
    assert len(parts["validation"]) == 5 and not set(parts["train"]["prompt"]) & set(
        parts["validation"]["prompt"]
    )


# ---- embedded sets


def embedded(name: str, train: int = 400, validation: int = 40):
    return embedded_examples(name, train_examples=train, validation_examples=validation, seed=0)


def test_translations_are_babels_own_and_values_are_held_out():
    parts = embedded("translation-en-de", 3000, 300)
    assert {name: len(part) for name, part in parts.items()} == {"train": 3000, "validation": 300}
    every = {row["en"]: row["other"] for part in parts.values() for row in part}
    dates = {en: de for en, de in every.items() if re.fullmatch(r"[A-Z][a-z]+ \d+, \d{4}", en)}
    assert len(dates) > 100
    for en, de in dates.items():
        day = datetime.datetime.strptime(en, "%B %d, %Y")
        assert de == format_date(day, "long", locale="de")
    euros = {en: de for en, de in every.items() if en.endswith(" euros")}
    assert euros and all(
        de
        == format_currency(float(en[:-6].replace(",", "")), "EUR", locale="de", format_type="name")
        for en, de in euros.items()
    )
    held_out = [en for en in parts["validation"]["en"] if en in dates]
    training = "\n".join(parts["train"]["en"])
    assert len(held_out) > 10 and not [date for date in held_out if date in training]
    french = embedded("translation-en-fr", 50, 5)
    assert any(
        " janvier " in fr or " mai " in fr or " et " in fr for fr in french["train"]["other"]
    )


def test_questions_are_answered_by_their_text():
    parts = embedded("question-answering")
    assert not set(parts["train"]["context"]) & set(parts["validation"]["context"])
    kinds = {"yes": 0, "no": 0, "words": 0}
    names = load_sample_data("finetune_task", "people")["names"]
    for row in parts["train"]:
        [name] = [name for name in names if re.search(rf"\b{name}\b", row["question"])]
        facts = [fact for fact in row["context"].split(". ") if fact.startswith(f"{name} ")]
        value = row["question"].rstrip("?").split()[-1]
        if row["answer"] in ("yes", "no"):
            said = any(fact.rstrip(".").split()[-1] == value for fact in facts)
            assert row["answer"] == ("yes" if said else "no"), row
        else:
            assert any(fact.rstrip(".").endswith(f" {row['answer']}") for fact in facts), row
        kinds[row["answer"] if row["answer"] in kinds else "words"] += 1
    assert min(kinds.values()) > 40


def test_dialogues_remember_what_was_said():
    parts = embedded("dialogue")
    for row in parts["train"]:
        turns = [turn["content"] for turn in row["messages"]]
        name = turns[0].split()[-1].rstrip(".")
        assert name in turns[1]
        if len(turns) >= 6:
            assert all(
                word in turns[5]
                for word in (name, turns[2].split()[-1].rstrip("."), turns[2].split()[5])
            )


def test_equal_seed_equal_examples():
    assert embedded("dialogue")["train"][:] == embedded("dialogue")["train"][:]
    first, other = (
        embedded_examples("question-answering", train_examples=5, validation_examples=2, seed=seed)
        for seed in (1, 2)
    )
    assert first["train"][:] != other["train"][:]


def test_swapped_words_are_swapped_everywhere_in_their_case():
    row = {
        "words": "read line | file | limit",
        "text": "At most LIMIT bytes of the file; readline",
        "signature": "",
        "summary": "Read a line of at most limit bytes.",
    }
    swaps = {
        "read": "jump",
        "line": "jump",
        "limit": "apple",
    }  # what name and summary share; file, most, bytes do not
    seen = set()
    for seed in range(40):
        made = swap_words(row, {4: ["jump"], 5: ["apple"]}, random.Random(seed))
        swapped = frozenset(word for word in swaps if word not in made["words"].split())
        expected = row
        for word in swapped:
            for old, new in (
                (word, swaps[word]),
                (word.capitalize(), swaps[word].capitalize()),
                (word.upper(), swaps[word].upper()),
            ):
                expected = {
                    name: re.sub(rf"\b{old}\b", new, text) for name, text in expected.items()
                }
        assert made == expected
        seen.add(swapped)
    assert len(seen) == 8  # each word at times, each at times not


@pytest.mark.slow
def test_the_standard_librarys_functions_and_summaries():
    """Reads and parses the whole standard library."""
    parts = embedded("code", None, 300)
    assert len(parts["train"]) > 2000 and len(parts["validation"]) == 300
    define = {
        name: {row.split("def ")[1].split("  # ")[0] for row in part["declaration"]}
        for name, part in parts.items()
    }
    assert not define["train"] & define["validation"]
    for row in list(parts["validation"])[:50]:
        compile(f"def f():\n {row['body']}" if "await" not in row["body"] else "", "body", "exec")
    parts = embedded("summarization", None, 500)
    learned, held_out = (set(parts[name]["summary"]) for name in ("train", "validation"))
    real = {
        " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
        for _, node in read_functions(random.Random(0))
    }
    assert held_out < real and not learned & held_out  # what is judged was read, not made
    assert (
        len(parts["train"]) == 20_000 and len(learned & real) > 3000 and len(learned - real) > 3000
    )


# ---- real files


def real(folder, names: list[str], **settings):
    sources = [str(folder / name) for name in names]
    parts = load_task(TaskArguments(task_source=sources, **settings), seed=0)
    return {name: len(part) for name, part in parts.items()}, parts["train"]


def test_real_parallel_text(real_data):
    settings = {"task_format": "parallel", "prompt": "{source}", "target": "{target}"}
    pair = ["tatoeba/tatoeba.deu-eng.eng", "tatoeba/tatoeba.deu-eng.deu"]
    sizes, train = real(real_data, pair, **settings)
    assert sizes == {"train": 900, "validation": 100}
    lines = [(real_data / name).read_text("utf-8").splitlines() for name in pair]
    assert set(zip(train["prompt"], train["target"], strict=True)) < set(zip(*lines, strict=True))
    noisy = ["opennmt_ende/src-train.txt.gz", "opennmt_ende/tgt-train.txt.gz"]
    with pytest.raises(InputError, match=r"src-train.txt.gz and .*, line \d+: the prompt is empty"):
        real(real_data, noisy, **settings)
    assert real(real_data, noisy, drop_empty=True, **settings)[0]["train"] == 9499 + 500 - 500


def test_real_questions_and_instructions(real_data):
    sizes, train = real(
        real_data,
        ["policyqa/dev.json.gz"],
        task_format="squad",
        target="{answers}",
        prompt="{question}\n{context}",
    )
    with gzip.open(real_data / "policyqa/dev.json.gz") as file:
        count = sum(
            len(p["qas"]) for article in json.load(file)["data"] for p in article["paragraphs"]
        )
    assert sum(sizes.values()) == count
    assert all(row["target"] in row["prompt"] for row in train)
    for name, count in (("dolly_small/*.jsonl.gz", 1000), ("self_instruct/seed_tasks.jsonl", 175)):
        sizes, train = real(
            real_data, [name], task_format="instructions", prompt="{prompt}", target="{response}"
        )
        assert sum(sizes.values()) == count
    sizes, train = real(
        real_data,
        ["adversarial_qa/adversarial_qa_en.jsonl.gz"],
        prompt="{question}",
        target="{answers.text}",
    )
    assert sum(sizes.values()) == 600


def test_real_summaries_code_and_dialogues(real_data):
    args = TaskArguments(
        task_source=[str(real_data / "scitldr/train.jsonl.gz")],
        prompt="{source}",
        target="{target}",
        validation_examples=700,
        task_validation_source=[str(real_data / "scitldr/test.jsonl.gz")],
    )
    parts = load_task(args, seed=0)
    assert {name: len(part) for name, part in parts.items()} == {"train": 1992, "validation": 618}
    assert max(map(len, parts["validation"]["references"])) > 1
    sizes, _ = real(
        real_data, ["conala/conala-train.json.gz"], prompt="{intent}", target="{snippet}"
    )
    assert sum(sizes.values()) > 2000
    sizes, train = real(
        real_data, ["sgd/test.jsonl.gz"], task_format="chat", assistant_role="SYSTEM"
    )
    assert sum(sizes.values()) == 1024
    assert train[0]["messages"][-1] == {"role": "assistant", "content": train[0]["target"]}


# ---- bad input


def chat(*roles: str) -> dict:
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


@pytest.mark.parametrize(
    "rows, settings, message",
    [
        (
            [{"q": "x", "a": "y"}],
            {"prompt": "{question}"},
            r":1: no column 'question'; it has q, a",
        ),
        (
            [{"q": "x", "a": " "}],
            {},
            ":1: the target is empty; mend it, or leave such examples out with --drop_empty",
        ),
        ([{"q": "x", "a": []}], {}, ":1: the target is empty"),
        ([{"q": None, "a": "y"}], {}, ":1: the prompt is empty"),
        (
            [{"q": "x", "a": "y"}],
            {"prompt": None},
            "prompt, target: missing; give templates .* has q, a",
        ),
        (
            [{"q": "x", "options": ["a"], "gold": 1}],
            {"target": None, "choices": "options", "label": "gold"},
            ":1: the answer 1 is not an index, from 0, of 1 choices",
        ),
        ([{"q": "x"}], {"task_format": "squad"}, ":1: not SQuAD: 'data' is missing"),
        (
            [{"q": "x"}],
            {"task_format": "instructions"},
            ":1: not an instruction; expected .* it has q",
        ),
        (
            [{"q": "x"}],
            {"task_format": "chat"},
            ":1: no column messages, conversations, turns; it has q",
        ),
        (
            [chat("assistant", "user")],
            {"task_format": "chat"},
            ":1: the roles are assistant, user; expected system or",
        ),
        (
            [chat("user", "user", "assistant")],
            {"task_format": "chat"},
            ":1: the roles are user, user, assistant",
        ),
        (
            [chat("user", "assistant", "tool")],
            {"task_format": "chat"},
            "roles are user, assistant, tool; .*--user_role",
        ),
        (
            [chat("user")],
            {"task_format": "chat"},
            "none of the 1 train examples has a prompt and a target; look at .*:1",
        ),
        ([chat()], {"task_format": "chat"}, "the roles are none"),
        (
            [{"messages": [{"role": "user", "content": ""}]}],
            {"task_format": "chat"},
            ":1: turn 0 is .*; expected a role and a text that is not empty",
        ),
        ([{"messages": [{"speech": "x"}]}], {"task_format": "chat"}, ":1: turn 0 is"),
        (
            [{"messages": "hello"}],
            {"task_format": "chat"},
            ":1: column 'messages' holds 'hello'; expected a list",
        ),
        (
            [{"q": {"text": "x", "start": 1}, "a": "y"}],
            {},
            r":1: column 'q' holds named values \(text, start\); name one of them after a dot",
        ),
        ([{"q": [["x"]], "a": "y"}], {}, ":1: column 'q' holds a list where text is expected"),
        (
            [{"q": "x", "a": ["y", "z"], "b": ["y"]}],
            {"target": "{a} {b}"},
            ":1: the target's columns list 2 in 'a', 1 in 'b'; expected as many in each",
        ),
        ([{"q": "x", "a": "y"}], {"prompt": "{Q}"}, ":1: no column 'Q'; it has q, a"),
        (
            [{"quest text": "x", "a": "y"}],
            {"prompt": "{quest texts}"},
            ":1: no column 'quest texts'; it has quest text, a; did you mean quest text",
        ),
        (
            [{"price": "x", "a": "y"}],
            {"prompt": "{price:.2f}"},
            ":1: no column 'price:.2f'; it has price, a",
        ),
        (
            [{"q": "x", "options": "a or b", "gold": 1}],
            {"target": None, "choices": "options", "label": "gold"},
            ":1: column 'options' holds 'a or b'; expected a list of choices",
        ),
        (
            [{"q": "x", "a": "y"}],
            {"prompt": None, "target": None},
            "or, for columns such as prompt and response, only a",
        ),
        (
            [chat("user", "assistant")],
            {"prompt": None, "target": None},
            "missing; .*:1 has messages: read conversations with --task_format chat",
        ),
        (
            [{"q": "x", "options": ["a"], "answer": 0}],
            {"target": None, "choices": "options", "chat_template": "chatml"},
            "chat_template: choices are scored after a plain prompt",
        ),
        ([["x", "y"]], {}, r":1: holds .*, not named columns; a row is a JSON object"),
    ],
)
def test_wrong_rows_are_named_with_file_and_line(tmp_path, rows, settings, message):
    with pytest.raises(InputError, match=r"^[^\n]*" + message + r"[^\n]*$"):
        load(jsonl(tmp_path / "rows.jsonl", rows), **settings)


def test_wrong_json_is_named_with_its_line(tmp_path):
    with pytest.raises(
        InputError, match=r"rows.jsonl:2: not JSON \(.* at column 6\); mend or remove the line"
    ):
        load(write(tmp_path / "rows.jsonl", '{"q": "x", "a": "y"}\n{"q":\n'))
    with pytest.raises(InputError, match=r"rows.json:3: not JSON"):
        load(write(tmp_path / "rows.json", '[\n{"q": "x", "a": "y"},\nhello]'))
    (tmp_path / "latin.jsonl").write_bytes('{"q": "\xe4"}'.encode("latin-1"))
    with pytest.raises(InputError, match="latin.jsonl:1: not UTF-8"):
        load(str(tmp_path / "latin.jsonl"))


def test_wrong_sources(tmp_path):
    text = write(tmp_path / "a.txt", "x\ny\n")
    with pytest.raises(InputError, match="1 files; parallel text is two, the source first"):
        load(text, task_format="parallel")
    with pytest.raises(
        InputError, match=r"a.txt has 2 lines and .*b.txt 1; parallel files have the same number"
    ):
        load([text, write(tmp_path / "b.txt", "x\n")], task_format="parallel")
    with pytest.raises(InputError, match="a.txt: a task is read from .jsonl, .json, .csv"):
        load(text)
    with pytest.raises(InputError, match="nowhere.jsonl: no such file or folder"):
        load(str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(
        InputError, match="embedded:poems: unknown; there are embedded:translation-en-de,"
    ):
        load("embedded:poems")
    with pytest.raises(InputError, match="task_source: missing"):
        load_task(TaskArguments(), seed=0)
    few = jsonl(tmp_path / "few.jsonl", [{"q": "x", "a": "y"}] * 9)
    with pytest.raises(InputError, match="9 examples are too few to hold a tenth of them out"):
        load_task(TaskArguments(task_source=[few], prompt="{q}", target="{a}"), seed=0)


def test_drop_empty_says_how_many(tmp_path, capsys):
    rows = [{"q": "x", "a": "y"}, {"q": "", "a": "y"}, {"q": "x", "a": ""}]
    assert len(load(jsonl(tmp_path / "rows.jsonl", rows), drop_empty=True)) == 1
    assert "drop_empty: 4 examples" in capsys.readouterr().err  # two of each part


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"user_role": "Human", "assistant_role": "human "}, "user_role Human: is the assistant_r"),
        ({"stop_strings": ["\n", ""]}, "stop_strings: an empty string would stop at once"),
    ],
)
def test_names_that_cannot_work_are_refused_before_anything_is_read(values, match):
    with pytest.raises(InputError, match=match):
        load_task(TaskArguments(task_source=["nowhere.jsonl"], **values), seed=0)

"""Metrics against other implementations of them: sacrebleu's command, rouge-score, SQuAD's rules
written another way, and numbers computed by hand. Also what they refuse.
"""

import gzip
import json
import math
import random
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest

from hfscale.metrics.intervals import bootstrap_sums
from hfscale.metrics.texts import (
    METRICS,
    TEXT_METRICS,
    check_references,
    choice_statistics,
    item_statistics,
    metric_values,
    pass_at_k_statistics,
    signature,
    tie_shares,
    tied_accuracies,
)
from hfscale.process import InputError

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
PREDICTIONS = ["the cat sat on the mat", "A dog ran away.", ""]
REFERENCES = [["the cat sat on a mat", "a cat is on the mat"], ["The dog ran"], ["nothing at all"]]


def value(metric, predictions, references, **options):
    return metric_values(
        metric, item_statistics(metric, predictions, references, **options).sum(axis=0), **options
    )


def imperfect(text: str, seed: int) -> str:
    """A text that shares much with `text`: words dropped, doubled, swapped or put in capitals; now
    and then empty.
    """
    rng = random.Random(seed)
    words = [word for word in text.split() for _ in range(rng.choice((0, 1, 1, 1, 1, 2)))]
    for _ in range(rng.randrange(3)):
        i, j = rng.randrange(len(words) or 1), rng.randrange(len(words) or 1)
        words[i : i + 1], words[j : j + 1] = words[j : j + 1], words[i : i + 1]
    words = [
        rng.choice((word, word, word, word.upper(), f"the {word}", f"{word},")) for word in words
    ]
    return "" if rng.random() < 0.05 else " ".join(words)


@pytest.fixture(scope="module")
def summaries(real_data) -> tuple[list[str], list[list[str]]]:
    """Imperfect summaries of scientific papers and their references, two to four each."""
    rows = [json.loads(line) for line in gzip.open(real_data / "scitldr" / "test.jsonl.gz", "rt")][
        :150
    ]
    references = [[" ".join(text.split()) for text in row["target"]] for row in rows]
    return [imperfect(golds[i % 2], i) for i, golds in enumerate(references)], references


@pytest.fixture(scope="module")
def answers(real_data) -> tuple[list[str], list[list[str]]]:
    """Answers to questions, most of them imperfect, and their references: one to eight each, some
    of them empty.
    """
    golds = [
        json.loads(line)["answers"]["text"]
        for line in gzip.open(real_data / "adversarial_qa" / "adversarial_qa_en.jsonl.gz", "rt")
    ]
    pages = json.load(gzip.open(real_data / "policyqa" / "dev.json.gz", "rt"))["data"]
    golds += [
        [answer["text"] for answer in question["answers"]]
        for page in pages
        for part in page["paragraphs"]
        for question in part["qas"]
    ]
    golds += [
        [""],
        ["the"],
        ["", "a"],
        ["...", "The end."],
        ["An—answer", "a.b"],
        ["the the"],
        ["‘Tis it’"],
    ] * 6
    rng = random.Random(0)
    given = [
        rng.choice(
            (texts[0], texts[-1].lower() + ".", "the " + texts[0], "", "a", imperfect(texts[-1], i))
        )
        for i, texts in enumerate(golds)
    ]
    return given, golds


# ---- BLEU and chrF: the sacrebleu command


def sacrebleu_command(folder: Path, predictions, references, *flags) -> list[dict]:
    streams = [folder / f"ref{i}" for i in range(len(references[0]))]
    for stream, lines in zip(streams, zip(*references, strict=True), strict=True):
        stream.write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "hyp").write_text("\n".join(predictions) + "\n", "utf-8")
    command = [
        sys.executable,
        "-m",
        "sacrebleu",
        *map(str, streams),
        "-i",
        str(folder / "hyp"),
        "-w",
        "12",
        *flags,
    ]
    return json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    )


@pytest.mark.parametrize(
    ("num_references", "flags", "metric", "options"),
    [
        (1, "", "bleu", {}),
        (2, "", "bleu", {}),
        (2, "--lowercase --tokenize char", "bleu", {"lowercase": True, "tokenize": "char"}),
        (
            1,
            "--smooth-method floor --smooth-value 0.01",
            "bleu",
            {"smooth_method": "floor", "smooth_value": 0.01},
        ),
        (1, "", "chrf", {}),
        (2, "--chrf-word-order 2", "chrf", {"word_order": 2}),
    ],
)
def test_bleu_and_chrf_equal_the_sacrebleu_command(
    tmp_path, summaries, num_references, flags, metric, options
):
    predictions, references = summaries[0], [golds[:num_references] for golds in summaries[1]]
    theirs = sacrebleu_command(tmp_path, predictions, references, "-m", metric, *flags.split())
    assert value(metric, predictions, references, **options)[metric] == pytest.approx(
        theirs["score"], abs=1e-11
    )
    assert 5 < theirs["score"] < 95
    assert signature(metric, references, **options) == theirs["signature"]


def test_items_may_have_different_numbers_of_references(summaries):
    from sacrebleu.metrics import BLEU, CHRF

    predictions, references = summaries
    assert {len(golds) for golds in references} == {2, 3, 4}
    streams = list(zip_longest(*references))
    for metric, scorer in (("bleu", BLEU()), ("chrf", CHRF())):
        assert (
            value(metric, predictions, references)[metric]
            == scorer.corpus_score(predictions, streams).score
        )
        assert signature(metric, references) == scorer.get_signature().format()
    assert signature("bleu", references).startswith("nrefs:var|")
    assert signature("bleu").startswith("case:mixed|")  # number of references not told


# ---- ROUGE: rouge-score, and by hand where its tokenizer does not work


@pytest.mark.parametrize("stemmer", [False, True])
def test_rouge_equals_rouge_score(summaries, stemmer):
    from rouge_score.rouge_scorer import RougeScorer

    predictions, references = (
        [text.replace(",", "\n") for text in summaries[0][:40]],
        summaries[1][:40],
    )
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(kinds, use_stemmer=stemmer)
    best = [
        [max(scorer.score(gold, text)[kind].fmeasure for gold in golds) for kind in kinds]
        for text, golds in zip(predictions, references, strict=True)
    ]
    ours = value("rouge", predictions, references, use_stemmer=stemmer)
    assert list(ours) == kinds
    assert list(ours.values()) == pytest.approx(np.mean(best, axis=0), abs=1e-15)
    assert ours["rougeLsum"] != ours["rougeL"]


def test_rouge_of_languages_without_spaces_or_latin_letters():
    chinese = value("rouge", ["今天天气好"], [["今天的天气很好"]], tokenizer="character")
    assert chinese["rouge1"] == pytest.approx(2 * 5 / (5 + 7))  # 今 天 天 气 好
    assert chinese["rouge2"] == pytest.approx(2 * 2 / (4 + 6))  # 今天 天气
    assert chinese["rougeL"] == pytest.approx(2 * 5 / (5 + 7))
    russian = value("rouge", ["Кошка спит, на окне."], [["кошка спит на полу"]], tokenizer="words")
    assert (russian["rouge1"], russian["rouge2"]) == pytest.approx((2 * 3 / 8, 2 * 2 / 6))
    assert value("rouge", ["Über Ähren"], [["über Öl"]], tokenizer="words")[
        "rouge1"
    ] == pytest.approx(1 / 2)


@pytest.mark.parametrize("tokenizer", ["words", "character"])
@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        ("कि की को", "का के कु"),  # Hindi: vowel signs
        ("गीता", "गोती"),
        ("কি কী কো", "কা কে কু"),  # Bengali
        ("ਕਿ ਕੀ", "ਕਾ ਕੇ"),  # Punjabi
        ("கி கீ கொ", "கா கே கு"),  # Tamil
        ("కి కీ", "కా కే"),  # Telugu
        ("ക്ക കി", "കാ കേ"),  # Malayalam
        ("กิ กี กุ", "กำ กั ก็"),  # Thai: vowels and tones above and below
        ("ກິ ກີ", "ກຸ ກັ"),  # Lao
        ("ကိ ကီ", "ကု ကေ"),  # Burmese
        ("កិ កី", "កុ កេ"),  # Khmer
        ("ཀི ཀུ", "ཀེ ཀོ"),  # Tibetan
        ("كَ بِ", "كُ بَ"),  # Arabic with harakat
        ("בָּ גִ", "בֶּ גֹ"),  # Hebrew with niqqud
        ("e\u0301 a\u0300", "e\u0302 a\u0323"),  # Latin in NFD
        ("é à", "e\u0302 a\u0323"),
        ("ó ọ̀", "ò ọ́"),  # Yoruba
    ],
)
def test_rouge_tells_words_apart_that_differ_in_a_mark(prediction, gold, tokenizer):
    found = value("rouge", [prediction], [[gold]], tokenizer=tokenizer)
    assert found == {"rouge1": 0, "rouge2": 0, "rougeL": 0, "rougeLsum": 0}
    assert value("rouge", [gold], [[gold]], tokenizer=tokenizer)["rouge1"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "Ti\u1ebfng Vi\u1ec7t",
        "une \xe9l\xe8ve",
        "\u0958\u0932\u092e",
        "\u30ac\u30e9\u30b9",
        "\ufb2a\u05dc",
    ],
)
def test_rouge_sees_through_normal_forms(text):
    apart = unicodedata.normalize("NFD", text)
    assert apart != text
    for tokenizer in ("words", "character"):
        assert value("rouge", [text], [[apart]], tokenizer=tokenizer)["rouge1"] == 1


@pytest.mark.parametrize("golds", [["今天天气很好"], ["кошка спит"], ["the GPU 是一个很好的芯片"]])
def test_rouge_is_never_silently_zero_for_letters_that_its_tokenizer_drops(golds):
    with pytest.raises(
        InputError,
        match=r"^rouge: item 1: the tokenizer rouge_score drops .* set tokenizer to words",
    ):
        item_statistics("rouge", ["a", golds[0]], [["fine"], golds])
    with pytest.raises(InputError, match="^rouge: item 0: the tokenizer words drops most of '👍'"):
        item_statistics("rouge", ["👍"], [["👍"]], tokenizer="words")
    assert value("rouge", golds, [golds], tokenizer="character")["rouge1"] == 1
    item_statistics("rouge", ["?"], [["Der Übermut"]])  # some letters may go
    item_statistics("rouge", ["是"], [["yes"]])  # a wrong answer may be anything


# ---- exact match and F1: SQuAD's rules written another way


def squad_tokens(text: str) -> list[str]:
    kept = text.lower().translate({ord(c): None for c in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"})
    return "".join(
        " " if part in ("a", "an", "the") else part for part in re.split(r"(\W+)", kept)
    ).split()


def squad_pair(prediction: str, gold: str, version: int) -> tuple[float, float]:
    given, right = squad_tokens(prediction), squad_tokens(gold)
    if version == 2 and (not given or not right):
        return float(given == right), float(given == right)
    left, shared = list(right), 0
    for token in given:
        if token in left:
            left.remove(token)
            shared += 1
    if not shared:
        return float(given == right), 0.0
    precision, recall = shared / len(given), shared / len(right)
    return float(" ".join(given) == " ".join(right)), 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("version", [1, 2])
def test_exact_match_and_f1_equal_squads_rules(answers, version):
    predictions, references = answers
    expected = []
    for text, golds in zip(predictions, references, strict=True):
        if version == 2:
            golds = [gold for gold in golds if squad_tokens(gold)] or [""]
        expected.append(np.max([squad_pair(text, gold, version) for gold in golds], axis=0))
    for metric, column in zip(("exact_match", "f1"), np.transpose(expected), strict=True):
        rows = item_statistics(metric, predictions, references, squad_version=version)
        assert rows[:, 0] == pytest.approx(column, abs=1e-12)
        total = value(metric, predictions, references, squad_version=version)[metric]
        assert total == pytest.approx(100 * column.mean(), abs=1e-11) and 10 < total < 90


@pytest.mark.parametrize(
    ("prediction", "golds", "first", "second"),
    [
        ("", [""], (1, 0), (1, 1)),  # no answer is right
        ("the", [""], (1, 0), (1, 1)),  # empty in normal form
        ("cat", [""], (0, 0), (0, 0)),
        ("", ["cat"], (0, 0), (0, 0)),
        ("", ["", "cat"], (1, 0), (0, 0)),  # version 2: there is an answer, so nothing is wrong
        ("The U.S.", ["us"], (1, 1), (1, 1)),
        ("an apple a day", ["apple day", "pear"], (1, 1), (1, 1)),
        (
            "b b c",
            ["b c c d"],
            (0, 4 / 7),
            (0, 4 / 7),
        ),  # shared tokens are counted, not only looked for
    ],
)
def test_squad_versions_by_hand(prediction, golds, first, second):
    for version, expected in ((1, first), (2, second)):
        got = [
            value(metric, [prediction], [golds], squad_version=version)[metric]
            for metric in ("exact_match", "f1")
        ]
        assert got == pytest.approx([100 * n for n in expected])


# ---- multiple choice, pass@k


def test_choices_by_sum_per_token_and_per_byte():
    logliks = [[-2.0, -3.0], [-4.0, -4.0], [-6.0, -5.0, -8.0]]
    tokens, num_bytes = [[1, 3], [1, 1], [3, 2, 8]], [[2, 10], [3, 3], [12, 5, 6]]
    rows = choice_statistics(logliks, tokens, num_bytes, [1, 0, 0])
    assert rows.tolist() == [[0, 1, 1, 1], [0.5, 0.5, 0.5, 1], [0, 0, 1, 1]]
    values = metric_values("accuracy", rows.sum(axis=0))
    assert values == pytest.approx(
        {"accuracy": 0.5 / 3, "accuracy_per_token": 1.5 / 3, "accuracy_per_byte": 2.5 / 3}
    )


def test_a_choice_that_ties_with_others_counts_its_share():
    """Of three choices that tie each is right with a third, wherever it stands."""
    units = [[1, 1, 1, 1]] * 5
    logliks = [[-2, -2, -2, -5]] * 4 + [[-2, -2, -2, -1]]
    rows = choice_statistics(logliks, units, units, [0, 1, 2, 3, 3])
    assert rows[:, 0].tolist() == [1 / 3, 1 / 3, 1 / 3, 0, 1]
    alike = choice_statistics([[-3.0] * 4] * 200, units * 40, units * 40, [0] * 200)
    assert metric_values("accuracy", alike.sum(axis=0))["accuracy"] == 1 / 4  # chance, not 1


def test_a_tie_is_of_what_is_compared():
    """In sum, per token and per byte other choices can tie; rounding makes no difference, more
    does.
    """
    items = [
        ([-2.0, -4.0], [1, 2], [4, 9]),
        ([-4.0, -4.0 - 1e-6], [2, 3], [5, 5]),
        ([-4.0, -4.0 - 1e-3], [1, 1], [5, 5]),
    ]
    rows = choice_statistics(*zip(*items, strict=True), [1, 1, 1])
    assert rows[:, :3].tolist() == [[0, 0.5, 1], [0.5, 1, 0.5], [0, 0, 0]]
    tied = [tied_accuracies(*item) for item in items]
    assert tied == [["accuracy_per_token"], ["accuracy", "accuracy_per_byte"], []]
    assert tie_shares(tied) == {
        f"{name}_ties": 1 / 3 for name in ("accuracy", "accuracy_per_token", "accuracy_per_byte")
    }


def test_nan_is_named():
    with pytest.raises(FloatingPointError, match="item 1: the log-likelihood of a choice is nan"):
        choice_statistics([[-1.0], [math.nan]], [[1], [1]], [[1], [1]], [0, 0])


def test_pass_at_k_is_the_mean_over_items():
    rows = pass_at_k_statistics([5, 5], [2, 0], ks=[1, 2])
    assert metric_values("pass_at_k", rows.sum(axis=0), ks=[1, 2]) == pytest.approx(
        {"pass@1": 0.2, "pass@2": 0.35}
    )


# ---- sums


@pytest.mark.parametrize("metric", TEXT_METRICS)
def test_sums_over_ranks_and_resamples_are_one_mechanism(metric):
    rows = item_statistics(metric, PREDICTIONS * 5, REFERENCES * 5)
    parts = [item_statistics(metric, PREDICTIONS * n, REFERENCES * n).sum(axis=0) for n in (2, 3)]
    assert metric_values(metric, parts[0] + parts[1]) == pytest.approx(
        metric_values(metric, rows.sum(axis=0))
    )
    sums = bootstrap_sums(rows, resamples=6).reshape(2, 3, -1)
    for name, values in metric_values(metric, sums).items():
        assert values.shape == (2, 3)
        assert values[1, 2] == metric_values(metric, sums[1, 2])[name]


# ---- the page's example


def by_hand() -> dict[str, float]:
    given, right = "the cat is on the mat now", "the cat is on a mat right now"

    def ngrams(units, n):
        return Counter(zip(*(units[i:] for i in range(n)), strict=False))

    def shares(given, right, n):
        a, b = ngrams(given, n), ngrams(right, n)
        shared = (a & b).total()
        return shared, a.total(), b.total()

    words = [shares(given.split(), right.split(), n) for n in (1, 2, 3, 4)]
    precisions = [Fraction(shared, count) for shared, count, _ in words]
    chars = [shares(given.replace(" ", ""), right.replace(" ", ""), n) for n in range(1, 7)]
    p, r = (sum(Fraction(c[0], c[i]) for c in chars) / 6 for i in (1, 2))
    rouge = [Fraction(2 * shared, a + b) for shared, a, b in words]
    return {
        "bleu": 100 * math.exp(1 - 8 / 7) * float(math.prod(precisions)) ** 0.25,
        "chrf": float(100 * 5 * p * r / (4 * p + r)),
        "rouge1": rouge[0],
        "rouge2": rouge[1],
        "rougeL": Fraction(2 * 6, 15),
        "rougeLsum": Fraction(2 * 6, 15),
        "exact_match": 0,
        "f1": 100 * 10 / 11,
        "loss": 6 * math.log(2) / 3,
        "perplexity": (2 * 4 * 8) ** (1 / 3),
        "bits_per_byte": (1 + 2 + 3) / 5,
        "word_perplexity": 64 ** (1 / 2),
        "accuracy": 0,
        "accuracy_per_token": 1,
        "accuracy_per_byte": 1,
        "pass@1": 2 / 5,
        "pass@2": Fraction(10 - 3, 10),
    }  # 10 pairs, 3 of them of two that fail


def test_the_pages_example():
    section = PAGE.read_text("utf-8").split("## A worked example")[1]
    page = dict(re.findall(r"^\| `(\S+)` \| (\S+) \|$", section, re.M))
    prediction, reference = (
        re.search(rf"{side}: `([^`]+)`", section)[1] for side in ("Prediction", "Reference")
    )
    ours = {}
    for metric in TEXT_METRICS:
        ours |= value(metric, [prediction], [[reference]])
    ours |= metric_values("perplexity", [6 * math.log(2), 3, len(b"be at"), 2])
    ours |= metric_values(
        "accuracy", choice_statistics([[-2, -3]], [[1, 3]], [[2, 10]], [1]).sum(axis=0)
    )
    ours |= metric_values(
        "pass_at_k", pass_at_k_statistics([5], [2], [1, 2]).sum(axis=0), ks=[1, 2]
    )
    hand = by_hand()
    assert page.keys() == ours.keys() == hand.keys()
    for name, shown in page.items():
        assert float(hand[name]) == pytest.approx(float(ours[name]), abs=1e-12), name
        assert f"{float(hand[name]):.{len(shown.partition('.')[2])}f}" == shown, name


# ---- what is refused


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            ("bluee", ["a"], [["a"]]),
            {},
            "metric: got 'bluee', expected one of bleu, .*; did you mean bleu?",
        ),
        (
            ("accuracy", ["a"], [["a"]]),
            {},
            "metric: accuracy does not compare texts; expected one of bleu, chrf",
        ),
        (
            ("f1", ["a", "b"], [["a"]]),
            {},
            "f1: got 2 predictions, 1 references; expected one of each per item",
        ),
        (
            ("f1", [], []),
            {},
            "f1: got 0 references; expected one of each per item, and at least one item",
        ),
        (
            ("f1", ["a"], [[]]),
            {},
            "f1: references of item 0 are .*, expected a list of one or more strings",
        ),
        (
            ("bleu", ["a", "b"], [["a"], "b"]),
            {},
            "bleu: references of item 1 are 'b', expected a list",
        ),
        (("bleu", [None], [["a"]]), {}, "bleu: prediction of item 0 is None, expected a string"),
        (("chrf", ["a"], [["a", None]]), {}, "chrf: references of item 0 are .*None"),
        (
            ("bleu", ["a"], [["", "  "]]),
            {},
            "bleu: references of item 0 are empty; give its right answer or leave it out",
        ),
        (("rouge", ["a"], [[""]]), {}, "rouge: references of item 0 are empty"),
        (("bleu", ["a"], [["a"]]), {"tokenise": "zh"}, "bleu: sacrebleu does not take .*tokenise"),
        (("bleu", ["a"], [["a"]]), {"tokenize": "chr"}, "bleu: sacrebleu does not take .*chr"),
        (
            ("rouge", ["a"], [["a"]]),
            {"tokenizer": "char"},
            "rouge: got option tokenizer='char', expected .*character",
        ),
        (
            ("rouge", ["a"], [["a"]]),
            {"tokenizer": "words", "use_stemmer": True},
            "rouge: use_stemmer stems English",
        ),
        (("f1", ["a"], [["a"]]), {"squad_version": 3}, "f1: got option squad_version=3, expected"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, options, message):
    with pytest.raises(InputError, match=f"^{message}") as error:
        item_statistics(*arguments, **options)
    assert "\n" not in str(error.value)


def test_references_can_be_checked_before_there_are_predictions():
    check_references("rouge", REFERENCES)
    with pytest.raises(InputError, match="item 0"):
        check_references("rouge", [["кошка"]])


@pytest.mark.parametrize(
    "columns",
    [
        ([[-1.0]], [[1]], [[1]], [1]),
        ([[-1.0]], [[1, 2]], [[1]], [0]),
        ([[-1.0]], [[1]], [[0]], [0]),
        ([[-1.0]], [[1]], [[1]], []),
        ([], [], [], []),
    ],
)
def test_choices_that_do_not_fit_are_refused(columns):
    with pytest.raises(InputError, match="^accuracy: "):
        choice_statistics(*columns)


def test_every_metric_has_a_signature_and_light_imports():
    assert all(re.fullmatch(r"\w+:[^|]+(\|\w+:[^|]+)*", signature(metric)) for metric in METRICS)
    assert signature("rouge", tokenizer="words").startswith("tokenizer:words|")
    code = (
        "import sys, hfscale.metrics.texts, hfscale.metrics.code;print(*{name.split('.')[0] for "
        "name in sys.modules} & {'evaluate', 'nltk', 'sacrebleu', 'torch'})"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert found.strip() == ""

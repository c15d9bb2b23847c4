"""Evaluation items are found in training text by the word n-grams they share."""

from datasets import Dataset

from hfscale.cleaning.contamination import contaminated_documents, contaminated_items

ITEM = [f"w{i}" for i in range(20)]  # 8 n-grams of 13 words


def rows(*texts):
    return [{"text": text} for text in texts]


def test_the_share_counts_the_ngrams_found_anywhere():
    train = rows(
        "nothing here", "before " + " ".join(ITEM[:14]) + " after", "x " + " ".join(ITEM[6:])
    )
    (found,) = contaminated_items(train, [" ".join(ITEM)])
    assert found == (4 / 8, 1)  # two n-grams in each of two documents
    assert contaminated_documents(train, [" ".join(ITEM)]) == [1, 2]


def test_twelve_words_are_no_match_and_thirteen_are():
    twelve, thirteen = " ".join(ITEM[:12]) + " else", " ".join(ITEM[:13])
    assert contaminated_items(rows(twelve, "other"), [" ".join(ITEM)]) == [(0.0, None)]
    assert contaminated_items(rows(twelve, thirteen), [" ".join(ITEM)]) == [(1 / 8, 1)]


def test_short_items_are_matched_whole():
    train = rows("The capital is Rome, of course.", "is rome")
    items = ["capital IS rome", "rome is capital", "course", "is", ""]
    assert contaminated_items(train, items) == [
        (1.0, 0),
        (0.0, None),
        (1.0, 0),
        (1.0, 0),
        (0.0, None),
    ]


def test_first_document_order_of_items_and_case_do_not_matter():
    train = rows("a", " ".join(ITEM).upper(), " ".join(ITEM))
    items = ["b c", " ".join(ITEM), "zzz", ", ".join(ITEM)]
    assert contaminated_items(train, items) == [(0.0, None), (1.0, 1), (0.0, None), (1.0, 1)]
    assert contaminated_documents(train, items) == [1, 2]


def test_data_sets_streams_and_nothing():
    text, other = " ".join(ITEM[:14]), " ".join(ITEM[1:15])
    data = Dataset.from_dict({"text": ["a b c", text]})
    for train in (data, data.to_iterable_dataset(), iter(rows("a b c", text))):
        assert contaminated_items(train, [other, text]) == [(1 / 2, 1), (1.0, 1)]
    assert contaminated_items(data, []) == [] and contaminated_items([], ["a"]) == [(0.0, None)]
    assert contaminated_documents(data, []) == []

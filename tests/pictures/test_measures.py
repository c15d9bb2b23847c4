"""What a caption says, attribute by attribute, and what another picture changes."""

from datasets import Dataset, DatasetDict

from hfscale.pictures.measures import CaptionMetrics, picture_effect, said, without_picture


def test_what_a_caption_says():
    positions = ["left", "top left", "top"]
    assert said("two red cats at the top left", positions) == ["top left"]
    assert said("two red cats at the left", positions) == ["left"]
    assert said("reddish cats", ["red", "blue"]) == []
    assert said("red and blue cats", ["red", "blue"]) == ["red", "blue"]


def judge() -> CaptionMetrics:
    rows = {
        "text": ["one red cat", "two red dogs here", "one blue dog", "two blue cats here"],
        "attributes": [["one", "red"], ["two", "red"], ["one", "blue"], ["two", "blue"]],
        "picture": [b"a", b"b", b"c", b"d"],
    }
    part = Dataset.from_dict(rows)
    return CaptionMetrics(DatasetDict(train=part, validation=part), ["count", "colour"])


def test_attributes_are_judged_one_by_one():
    right = ["one red cat", "two red dogs here", "one blue dog", "two blue cats here"]
    wrong = ["one red cat", "one red dog", "one blue red dog", ""]
    measured, statistics = judge().measure(wrong)
    assert measured["count_accuracy"] == 50 and measured["colour_accuracy"] == 50
    assert measured["attribute_accuracy"] == 50 and measured["exact_match"] == 25
    whole, of_right = judge().measure(right)
    assert whole["attribute_accuracy"] == 100 and round(whole["bleu"], 6) == 100
    effect = picture_effect(statistics, of_right)
    assert effect["picture_effect_attribute_accuracy"] == 50
    assert effect["picture_effect_exact_match"] == 75
    # Three differ: of 2^3 ways to swap them, two are as large.
    assert effect["picture_effect_attribute_accuracy_p_value"] == 2 / 8


def test_no_example_keeps_its_picture():
    pictures = [bytes([i]) * 12 for i in range(7)]
    shuffled = without_picture(pictures, "shuffled_pictures")
    assert sorted(shuffled) == pictures
    assert all(one != other for one, other in zip(pictures, shuffled, strict=True))
    assert set(without_picture(pictures, "blank_pictures")) == {bytes([127]) * 12}

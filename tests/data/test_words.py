"""Words in any script: with the marks on their letters, and without what stands between them."""

import unicodedata

import pytest

from hfscale.data.words import find_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's _the_ best, 1st & x²!", ["It", "s", "the", "best", "1st", "x²"]),
        ("हिन्दी में, है।", ["हिन्दी", "में", "है"]),
        ("தமிழ் മലയാളം ಕನ್ನಡ", ["தமிழ்", "മലയാളം", "ಕನ್ನಡ"]),
        ("كِتَاب", ["كِتَاب"]),
        ("שָׁלוֹם עולם", ["שָׁלוֹם", "עולם"]),
        ("می\u200cخواهم بروم", ["می\u200cخواهم", "بروم"]),
        ("བཀྲ་ཤིས་", ["བཀྲ", "ཤིས"]),
        ("tə̀ i̇stanbul", ["tə̀", "i̇stanbul"]),
        ("你好abc世界。", ["你", "好", "abc", "世", "界"]),
        ("カ\u3099ー・々〇𠀀", ["ガ", "ー", "々", "〇", "𠀀"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
        ("မြန်မာ", ["မြ", "န်", "မာ"]),
        ("❤\ufe0f 👩\u200d👧 \u0301", []),
        ("", []),
    ],
)
def test_words_of_many_scripts(text, words):
    assert find_words(text) == [unicodedata.normalize("NFC", word) for word in words]


@pytest.mark.parametrize("text", ["café über", "हिन्दी में है", "ガラス", "שָׁלוֹם"])
def test_equal_text_in_another_normal_form_has_equal_words(text):
    assert find_words(unicodedata.normalize("NFD", text)) == find_words(
        unicodedata.normalize("NFC", text)
    )


@pytest.mark.parametrize(
    ("one", "other"), [("कि", "की"), ("كَتَبَ", "كُتِبَ"), ("ป่า", "ป้า"), ("mà", "má")]
)
def test_words_that_differ_in_a_mark_are_different(one, other):
    assert find_words(one) != find_words(other)


def test_every_letter_and_digit_is_a_word_by_itself_and_beside_another():
    for character in map(chr, range(0x110000)):
        if character.isalnum():
            normal = unicodedata.normalize("NFC", character)
            assert "".join(find_words(character)) == normal, hex(ord(character))
            assert "".join(find_words(f"a {character} हिं")) == f"a{normal}हिं", hex(ord(character))

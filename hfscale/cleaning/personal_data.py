"""Marks in place of what looks like a person's address, telephone number or key
(docs/cleaning.md).

Every expression takes time linear in the text: its runs begin behind a look-behind, are bounded, or
are possessive (`++`: what they took they do not give back). Beside each stand examples of what it
takes («marked») and of what it must leave.
"""

import ipaddress
import re

MARKS = {"key": "<KEY>", "email": "<EMAIL>", "ip": "<IP>", "phone": "<PHONE>"}

# Keys that are known by their form: private keys in PEM, tokens of services by their first letters,
# JSON web tokens.
KEY = re.compile(
    r"""
    -----BEGIN\ [A-Z ]{0,40}PRIVATE\ KEY-----
        (?: [^-] | - (?!----) )*+
    -----END\ [A-Z ]{3,50}-----
    |
    (?<![\w-])
    (?:
        (?: AKIA | ASIA ) [A-Z0-9]{16}                         # Amazon
        | gh[pousr]_ \w{36,255}+                               # GitHub
        | github_pat_ \w{22,255}+
        | xox[abeprs]- [\w-]{10,250}+                          # Slack
        | [sr]k[-_] (?= [a-zA-Z_-]{0,60}+ \d ) [\w-]{20,250}+  # OpenAI, Stripe: with a digit
        | AIza [\w-]{35}                                       # Google
        | hf_ [A-Za-z0-9]{34}                                  # Hugging Face
        | glpat- [\w-]{20,50}+                                 # GitLab
        | npm_ [A-Za-z0-9]{36}
        | eyJ [\w-]{8,}+ \. eyJ [\w-]{8,}+ \. [\w-]{8,}+       # JSON web token
    )
    (?![\w-])
    """,
    re.X | re.A,
)
KEY_EXAMPLES = (
    "«-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: A-B\nMIIB\n-----END RSA PRIVATE KEY-----».",
    f"id=«{'AKIA' + 'IOSFODNN7EXAMPLE'}», «{'ghp_' + 'aB3' * 12}»",
    f"«{'xoxb-' + '123456789012-abcdef'}» «{'sk-proj-' + 'aB3dE5fG7hI9' * 3}»",
    f"«{'AIza' + 'aB3-_' * 7}» «{'hf_' + 'aB' * 17}» «{'npm_' + 'aB3' * 12}»",
    "«eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP-mB92K27uh»",
    "class='sk-fading-circle-of-many-dots', AKIAIOSFODNN7EXAMPLES",
    "-----BEGIN PRIVATE KEY----- alone, -----BEGIN CERTIFICATE-----",
)

# A value after a name that says it is secret; `_is_secret` looks at the value (group `value`).
ASSIGNMENT = re.compile(
    r"""
    (?P<name>
        (?:
            key | token | secret | password | passwd | pwd | bearer(?=\ )
            | KEY | TOKEN | SECRET | PASSWORD | PASSWD | PWD | Bearer(?=\ )
            | Key | Token | Secret | Password
        )
        \w{0,16}+                       # keyboard, KEY_ID
        ["'\]]{0,2}+ \s{0,3}+           # the end of a name in quotes or brackets
        (?: [:=]{1,2} >? )?+ \s{0,3}+   # : or =, := or ==, =>
        (?<= [=:>\s] )
        (?P<quote> ["'] )?+
    )
    (?P<value>
        (?(quote) [^\s"'<>]{10,200}+ | [A-Za-z0-9+/=_.~-]{16,200}+ )
    )
    (?(quote) (?=(?P=quote)) | (?![\w(\[]) )   # not a call, and no index
    """,
    re.X | re.A,
)
ASSIGNMENT_EXAMPLES = (
    "api_«key = '9f8a7b6c5d4e3f2a»'",
    "export DB_«TOKEN=9f8a7b6c5d4e3f2a1b0c»",
    '{"«password": "Tr0ub4dor&3x»"}',
    "Authorization: «Bearer 9f8a7b6c5d4e3f2a1b0c»",
    "the secret: tell nobody, password = 'correct horse'",
    "key = get_key_v2_of3_md5x(1), token = os.environ['A']",
)

# The name of a host has letters at its end that are no ending of a file, as in icon@2x.png.
EMAIL = re.compile(
    r"""
    (?<![\w.%+-])
    (?! git@[\w.-]{1,99}: )              # an address of a repository
    [\w.%+-]{1,64}+
    @
    (?: [A-Za-z0-9] [A-Za-z0-9-]{0,62}+ \. ){1,8}
    (?! (?: png | jpe?g | gif | svg | webp | js | css | py | tgz | zip | gz ) \b )
    [A-Za-z]{2,24}+
    (?![\w-])
    """,
    re.X | re.A,
)
EMAIL_EXAMPLES = (
    "write to «jane.doe+x@mail.example.co.uk».",
    "<«a_b@c.de»>,(«x@y.org»)",
    "邮箱«foo@bar.com»欢迎",
    "git@github.com:user/repo.git icon@2x.png @decorator name@ pkg@1.2.3 a @ b.com",
)

# IPv4, and IPv6 in use (2000::/3 and private ones); `_is_ip` looks at the numbers.
IP = re.compile(
    r"""
    (?<![\w.-])
    (?:
        \d{1,3} (?: \. \d{1,3} ){3} (?! [\w-] | \.\d )
        |
        (?<!:)
        (?: [23][\da-fA-F]{3} | [fF][c-fC-F][\da-fA-F]{2} )
        (?: : [\da-fA-F]{0,4} ){2,7}
        (?![\w:])
    )
    """,
    re.X | re.A,
)
IP_EXAMPLES = (
    "from «192.168.1.10»:80, http://«8.8.8.8»/x",
    "«2001:db8::8a2e:370:7334» [«fe80::1»]:443",
    "1.2.3.4.5 3.14159265 v1.2.3.4 a::b std::x",
    "12:34:56:78 00:1A:2B:3C:4D:5E x[1::2]",
)

PHONE = re.compile(
    r"""
    (?<![\w.,+/=-])
    (?:
        # with the code of a country: +49 30 901820, 0049 30 901820, +44 (0)20 7946 0958
        (?: \+ | 00 (?= \d{2,3} [ -] ) ) [1-9] \d{0,2}+
        (?:
            (?: [ /-] | \. (?=\d{3}) )?
            (?: \(\d{1,5}\) [ -]? )?+
            \d{1,5}+
        ){2,6}+
        |
        # North American: (415) 555-2671, 1-800-555-2671, 415.555.2671
        (?: 1 [-. ] )?+
        (?: \( [2-9]\d\d \) [ -]? | [2-9]\d\d (?P<dot> [-.] ) )
        [2-9]\d\d
        (?(dot) (?P=dot) | [-. ] )
        \d{4}
        |
        # French: 01 23 45 67 89
        0[1-9] (?: [ .] \d\d ){4}
        |
        # with the code of a town: 030/9018200, 020 7946 0958; a year may not follow it
        \(? 0[1-9]\d{1,3} \)? [ /-]
        (?! \d{4} (?! \d | \ \d ) )
        \d{3,8}+
        (?: [ -] \d{2,5} ){0,2}+
    )
    (?! [\w-] | [.,/:]\d )
    |
    (?<= (?:[Tt]el|[Ff]ax): \  ) \(? \d [\d ().-]{5,18} \d (?![\w-])
    """,
    re.X | re.A,
)
PHONE_EXAMPLES = (
    "«+1 (415) 555-2671»; «+14155552671»; «+44 (0)20 7946 0958»; «0049 30 901820»",
    "«(415) 555-2671», «1-800-555-2671», «415.555.2671»",
    "«030/9018200», «020 7946 0958», «01 23 45 67 89»; Tel: «4155552671»",
    "2020-01-02 01.02.2020 12:30:45 2003-04-11 14:32, 1914-1918",
    "ISBN 978-3-16-148410-0, $1,234,567.89, 100000000, 123-45-6789, +2020, a+1234567",
)
MIN_PHONE_DIGITS = 8
MAX_PHONE_DIGITS = 15  # of E.164

# In every telephone number; looked for first, it is quicker.
NUMBER = re.compile(r"\d \W{0,3} \d", re.X | re.A)
NUMBER_EXAMPLES = ("in «19»«84», «1) -2»", "one 1, two 2 and a")

# Before the number of a version or section, which looks like an IPv4 address.
VERSION = re.compile(
    r"""
    (?: version | release | sections? | chapter | build | § | \b v ) [\s"'.:=_]{0,6} $
    """,
    re.X | re.I,
)
VERSION_EXAMPLES = ("«Version: »", "see «§»", "«v»", "sections of", "dev")
VERSION_CHARACTERS = 16  # as many as the longest of them has, before a number

NOT_A_DIGIT = re.compile(r"\D")
NOT_A_DIGIT_EXAMPLES = ("1«-»2«a»", "0123")

LETTER_BESIDE_DIGIT = re.compile(r"(?= [a-zA-Z]\d | \d[a-zA-Z] )", re.X)
LETTER_BESIDE_DIGIT_EXAMPLES = ("«»a«»1b", "ab-12")


def mask_personal_data(text: str) -> tuple[str, dict[str, int]]:
    """<KEY>, <EMAIL>, <IP> and <PHONE> in place of what looks like one, and how many of each there
    were.
    """
    masked = KEY.sub(MARKS["key"], text)
    masked = ASSIGNMENT.sub(_mask_value, masked)
    if "@" in masked:
        masked = EMAIL.sub(MARKS["email"], masked)
    masked = IP.sub(_mask_ip, masked)
    if NUMBER.search(masked):
        masked = PHONE.sub(_mask_phone, masked)
    # A text can hold marks already.
    counts = {kind: masked.count(mark) - text.count(mark) for kind, mark in MARKS.items()}
    return masked, counts


def _mask_value(assignment: re.Match[str]) -> str:
    if _is_secret(assignment["value"]):
        return assignment["name"] + MARKS["key"]
    return assignment[0]


def _mask_ip(match: re.Match[str]) -> str:
    return MARKS["ip"] if _is_ip(match) else match[0]


def _mask_phone(match: re.Match[str]) -> str:
    num_digits = len(NOT_A_DIGIT.sub("", match[0]))
    is_phone = MIN_PHONE_DIGITS <= num_digits <= MAX_PHONE_DIGITS
    return MARKS["phone"] if is_phone else match[0]


def _is_secret(value: str) -> bool:
    """Letters and digits alternate and many characters differ, which names do not show."""
    return len(set(value)) >= 8 and len(LETTER_BESIDE_DIGIT.findall(value)) >= 3


def _is_ip(match: re.Match[str]) -> bool:
    """Not this machine, a netmask, or the number of a version or section."""
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified or match[0].startswith("255."):
        return False
    before = match.string[max(0, match.start() - VERSION_CHARACTERS) : match.start()]
    return not VERSION.search(before)

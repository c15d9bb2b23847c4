"""What looks like a person's data is masked, and what only resembles it stays."""

import pytest

from hfscale.cleaning.personal_data import mask_personal_data
from hfscale.cleaning.repair import repair_text
from tests.benchmarks.beginnings import UNITS

HEX = "9f8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to jane.doe+x@mail.example.co.uk.", "write to <EMAIL>."),
        ("<a_b@c.de>,(x@y.org)", "<<EMAIL>>,(<EMAIL>)"),
        ("邮箱foo@bar.com欢迎", "邮箱<EMAIL>欢迎"),
        ("+1 (415) 555-2671; +14155552671; +44 (0)20 7946 0958", "<PHONE>; <PHONE>; <PHONE>"),
        (
            "(415) 555-2671, 415-555-2671, 1-800-555-2671, 415.555.2671",
            "<PHONE>, <PHONE>, <PHONE>, <PHONE>",
        ),
        (
            "+49 30 901820, 030/9018200, 020 7946 0958, 01 23 45 67 89",
            "<PHONE>, <PHONE>, <PHONE>, <PHONE>",
        ),
        ("Tel: 4155552671", "Tel: <PHONE>"),
        ("0049 30 901820", "<PHONE>"),
        (
            "from 192.168.1.10:80, http://8.8.8.8/x, ip:10.0.0.1",
            "from <IP>:80, http://<IP>/x, ip:<IP>",
        ),
        ("2001:db8::8a2e:370:7334 [fe80::1]:443", "<IP> [<IP>]:443"),
        ("AKIA" + "IOSFODNN7EXAMPLE", "<KEY>"),
        ("ghp_" + "aB3" * 12, "<KEY>"),
        ("xoxb-" + "123456789012-abcdef", "<KEY>"),
        ("sk-proj-" + "aB3dE5fG7hI9" * 3, "<KEY>"),
        ("hf_" + "aB" * 17, "<KEY>"),
        ("AIza" + "aB3-_" * 7, "<KEY>"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP-mB92K27uh", "<KEY>"),
        (
            f"-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: A-B\n{HEX}\n-----END RSA PRIVATE "
            "KEY-----.",
            "<KEY>.",
        ),
        (f"api_key = '{HEX}'", "api_key = '<KEY>'"),
        (f"export DB_TOKEN={HEX}", "export DB_TOKEN=<KEY>"),
        ('{"password": "Tr0ub4dor&3x"}', '{"password": "<KEY>"}'),
        (f"Authorization: Bearer {HEX}", "Authorization: Bearer <KEY>"),
    ],
)
def test_personal_data_is_masked(text, expected):
    masked, counts = mask_personal_data(text)
    assert masked == expected
    assert counts == {
        kind: expected.count(f"<{kind.upper()}>") for kind in ("key", "email", "ip", "phone")
    }
    assert mask_personal_data(masked) == (masked, dict.fromkeys(counts, 0))


@pytest.mark.parametrize(
    "text",
    [
        "2020-01-02 01/02/2020 01.02.2020 12:30:45 2003-04-11 14:32 Date: 2003-04-11 14:32, "
        "1914-1918, in 1984",
        "ISBN 978-3-16-148410-0, 0-306-40615-2, ISSN 0317-8471, doi:10.1000/182",
        "$1,234,567.89 or 1 234 567,00 EUR, 100000000",
        "v1.2.3.4, version 1.2.3.4, Release 10.0.19041.1, §1.2.3.4, 1.2.3, numpy==2.4.6",
        "127.0.0.1 0.0.0.0 255.255.255.0 ::1",
        "999.1.1.1 1.2.3.4.5 3.14159265",
        "git@github.com:user/repo.git icon@2x.png @decorator name@ pkg@1.2.3 a @ b.com",
        "std::vector<int> x[1::2] a::b 12:34:56:78 00:1A:2B:3C:4D:5E",
        "+5 -3 a+1234567 1+2 +2020, 3.5e+10",
        "123-45-6789",
        "token = user_token_2024_backup",
        "key = get_key_v2_of3_md5x(1)",
        "password = 'correct horse'",
        "the secret: tell nobody",
        "keyboard: qwertyuiopasdfghjkl",
        "class='sk-fading-circle'",
        "key: 'sha256', tokens=50257",
        "secret = os.environ['SECRET_KEY_FOR_V2_API']",
        "0.9421 0.1234 0.5678",
        "page 1234 5678, 2345 678 9012",
    ],
)
def test_hard_negatives_stay(text):
    assert mask_personal_data(text) == (text, {"key": 0, "email": 0, "ip": 0, "phone": 0})


@pytest.mark.parametrize("unit", UNITS)
def test_repetition_is_no_personal_data(unit):
    """An expression that tries each beginning with each end would not come back for minutes; the
    benchmark measures that the time is linear in the text.
    """
    text = unit * (300_000 // len(unit))
    assert mask_personal_data(text) == (text, {"key": 0, "email": 0, "ip": 0, "phone": 0})
    assert repair_text(text) == text


def test_the_end_of_a_line_of_ten_megabytes_is_masked():
    line = "It was a bright cold day in April, and the clocks began to strike. " * 150_000
    masked, counts = mask_personal_data(line + "a@b.org")
    assert masked == line + "<EMAIL>"
    assert counts == {"key": 0, "email": 1, "ip": 0, "phone": 0}

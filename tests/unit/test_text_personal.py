"""Test the detection of personal data: matches, false positives, and linear time on unusual text."""

from __future__ import annotations

import time

import pytest

from finetale.text.personal import KINDS, find_personal_data, mask

FOUND = {
    "email": """Write to anna.quill@example.org today
anna+news@mail.example.co.uk
(bob_93@tarrow-post.net)
<x@y.io>
mailto:o'brien@example.ie
J.P@sub.example.com,
名前@example.jp です
_john@example.com_
john@example.com--he said
请发邮件到john@example.com咨询更多的信息和服务以及其他各种各样的问题谢谢大家
連絡はjohn@example.comまで""",
    "phone": """tel 020 7946 0958
+44 20 7946 0958
+44 (0)20 7946 0958
(212) 555-0147
212-555-0147
212.555.0147
1-800-555-0199
+1 212 555 0147
0049 30 901820
030/9018200
06 12 34 56 78
Call 555-0147 now
phone: 2125550147
+49-151-23456789
07946095812
电话：13800138000
Tel.0171 5550123
+8613800138000
0161 - 496 - 0000
ring me on 0161 496 0000.
01.23.45.67.89
06-12-34-56-78
Tél. 06.12.34.56.78
+33.6.12.34.56.78
电话13812345678
手机:13812345678联系我
1. 555-123-4567
2. 020 7946 0958
reach us at 555-123-4567 24/7""",
    "card": """4111 1111 1111 1111
4111111111111111
5500-0000-0000-0004
3782 822463 10005
card 6011111111111117
30569309025904
3530111333300000
4111 1111 1111 1111 12/26
1. 4111 1111 1111 1111""",
    "iban": """DE89 3704 0044 0532 0130 00
GB29NWBK60161331926819
IBAN:FR1420041010050500013M02606
DE89 3704 0044 0532 0130 00 BITTE
DE89 3704 0044 0532 0130 00""",
    "key": """AKIAQWERTZUIOP12ASDF
ghp_16C7e42F292c6912E7710c838347Ae178B4a
sk-proj-abc123DEF456ghi789JKL012
xoxb-123456789012-abcdefABCDEF
AIzaSyA1234567890abcdefghijklmnopqrstuv
api_key = "9f8e7d6c5b4a39281706"
password: hunter2!x9
eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abcDEF123_-xyz
sk_live_4eC39HqLyjWDarjtT1zdp7dc
The access key is wJalrXUtnFEMIK7MDENGbPxRfiCY1
DB_PASSWORD=s3cr3tPassw0rd
hf_abcdefghijklmnopqrstuvwxyzABCDEF12
-----BEGIN RSA PRIVATE KEY-----
-----BEGIN PGP PRIVATE KEY BLOCK-----""",
}
PASSED_OVER = """ISBN 0-19-852663-6
ISBN 978-3-16-148410-0
1914-1918 and 1939-1945
on 01.02.2024 12:30
2024-01-02 10:20:30
pi is 3.14159265358979
£1,234,567.89
$12 345 678
12 345 678 people
chapter 12:3-14
100 200 300 400 500
192.168.100.200
the password is swordfish
secret: the garden was open
key: the little door
a token of friendship
commit 3f2a9c8e7b6d5a4c3b2a1f0e9d8c7b6a5f4e3d2c
550e8400-e29b-41d4-a716-446655440000
http://example.org/0123456789
1 2 3 4 5 6 7 8 9 10
0.12345678901
foo@bar
@someone said
a @ b.com
version 1.20.300-4000
size 1024 2048 4096 8192
4111 1111 1111 1112
1234567890123456
10 000 000 km
score 21-15 21-17 19-21
Psalm 119:105-112
year 2001 2002 2003 2004
lat 51.5074, -0.1278
DE89 3704 0044 0532 0130 01
00:12:34,567 --> 00:12:36,890
0000000000
call 12,000,000 people
Call 1914-1918 a tragedy
Call of Duty sold 25 000 000
cell counts of 1 250 000
phone sales of 25 000 000
01 02 03 04 05
010 200 300 400 500
212 555 0147 300 400 5000
4111 1111 1111 1111 2222 3333""".splitlines()


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, texts in FOUND.items() for text in texts.split("\n")]
)
def test_personal_data_is_found_alone_and_in_a_sentence(kind: str, text: str) -> None:
    for whole in (text, f"So it was. {text} and so on.", f"First\n{text}\nlast"):
        assert [finding.kind for finding in find_personal_data(whole)] == [kind]
    assert f"[{kind.upper()}]" in mask(text, find_personal_data(text))


@pytest.mark.parametrize("text", PASSED_OVER)
def test_similar_text_is_not_personal_data(text: str) -> None:
    assert not find_personal_data(text)
    assert not find_personal_data(f"So it was {text} and so on.")


def test_several_in_a_text_are_masked_in_their_places() -> None:
    text = "Ada: ada@example.org, 212-555-0147; pay with 4111 1111 1111 1111 (password: hunter2!x9)."
    found = find_personal_data(text)
    assert [finding.kind for finding in found] == ["email", "phone", "card", "key"]
    assert mask(text, found) == "Ada: [EMAIL], [PHONE]; pay with [CARD] (password: [KEY])."
    assert mask("nothing", []) == "nothing"
    assert {finding.kind for finding in found} <= set(KINDS)


def test_two_adjacent_numbers_are_two_matches() -> None:
    for text in ("(555) 123-4567 (555) 987-6543", "DE89370400440532013000,GB29NWBK60161331926819"):
        assert len(find_personal_data(text)) == 2


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (
            "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END PRIVATE KEY-----\nMore.",
            "[KEY]\nMore.",
        ),
        (
            '{"key": "-----BEGIN PRIVATE KEY-----\\nMIIEvQIBADANBgkq\\n-----END PRIVATE KEY-----\\n"}',
            '{"key": "[KEY]\\n"}',
        ),
        ("-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC", "[KEY]"),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n"
            "MIIEvQ==\n-----END RSA PRIVATE KEY-----",
            "[KEY]",
        ),
    ],
)
def test_a_private_key_is_masked_completely(text: str, left: str) -> None:
    assert mask(text, find_personal_data(text)) == left


@pytest.mark.parametrize(
    "piece",
    [
        "a" * 50,
        "@",
        "a@a.",
        "0 ",
        "0-",
        "1",
        "key=",
        "key = a1",
        "eyJa.eyJ1.",
        "-----BEGIN PRIVATE KEY-----",
        "AA00 ",
        "sk-a1",
        "a@b.io ",
        "(0",
        "+1 ",
        ".1",
        "4111 ",
    ],
)
def test_any_text_takes_linear_time(piece: str) -> None:
    sizes = (100_000, 400_000)
    times = []
    for size in sizes:
        text = piece * (size // len(piece))
        tries = []
        for _ in range(2):
            started = time.process_time()
            find_personal_data(text)
            tries.append(time.process_time() - started)
        times.append(min(tries))
    assert times[1] < 8 * times[0] + 0.3
    assert times[1] < 5

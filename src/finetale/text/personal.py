"""Find personal data in a text: e-mail addresses, telephone and card numbers, bank accounts, keys. Knows no files.

A finding must pass every available check: the check digits of cards (Luhn, ISO/IEC 7812) and accounts (ISO 7064), the
grouping and context of telephone numbers, the prefixes that services give their keys. Names and postal addresses have
no such checks, so they are not searched for.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

KINDS = ("email", "phone", "card", "iban", "key")

# The ASCII patterns come first, because Chinese and Japanese put no space between an address and the words around it.
_LOCALS = (re.compile(r"[A-Za-z0-9_.+%'-]{0,63}[A-Za-z0-9_+%-]\Z"), re.compile(r"[\w.+%'-]{0,63}[\w+%-]\Z"))
_DOMAINS = (
    re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])"),
    re.compile(r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![^\W_])"),
)

_HINT = re.compile("[0-9@]")
_PRIVATE_KEY = "PRIVATE KEY"
_DIGIT = re.compile("[0-9]")
_SPACE = re.compile(r"\s")
# Seven or more digits, with at most a few separators between two of them.
_NUMBER = re.compile(r"[0-9](?:(?: [-\u2013] |[ \u00a0.()/\-\u2010\u2011\u2013]{0,2})[0-9]){6,200}")
_GROUP = re.compile("[0-9]+")
_MAX_GROUPS = 7  # of one number: +1 (212) 555 01 47 12
_MAX_IN_A_ROW = 14  # groups; longer rows are tables
_NUMBER_GOES_ON = re.compile(r"(?:[A-Za-z0-9_#$€£=/]|[0-9][.,:]|[A-Za-z0-9_]-)\Z")
_MORE_FOLLOWS = re.compile(r"[A-Za-z0-9_]|[.,:-][0-9]")
_CONTEXT = re.compile(
    r"(?:(?:\b(?:tel|telephone|telefon|teléfono|telefono|telefone|téléphone|tél|phone|ph|mobile|móvil|mobil|handy"
    r"|cellular|cellulare|fax|whatsapp|sms|hotline|тел|телефон)\b|☎|📞|电话|電話|手机|手機|携帯|전화)[^0-9\n]{0,24}"
    r"|\b(?:call|ring|dial|cell)\b(?: (?:me|us|him|her|them))?(?: (?:on|at))?\W{0,3})\Z",
    re.IGNORECASE,
)
_DATE = re.compile(r"(?:\d{1,2}([./-])\d{1,2}\1(?:\d{4}|\d{2})|\d{4}([./-])\d{1,2}\2\d{1,2})(?![./-]?\d)")
_COUNTS = re.compile(
    r"\d{1,3}(?:[ \u00a0.]\d{3})+\Z|(?:1[5-9]|20)\d\d.{1,3}(?:1[5-9]|20)\d\d\Z"
)  # 12 000 000, 1914-1918
_AMERICAN = re.compile(r"(?:1[ .-]?)?\(?[2-9]\d\d\)?(?:(?: ?[.-] ?|(?<=\)) ?)\d{3} ?[.-] ?| [2-9]\d\d[ .-])\d{4}\Z")
_CARD_GROUPS = {(4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 1), (4, 4, 4, 4, 3)}
_CARD_ISSUERS = re.compile(
    r"^(?:4\d{12}(?:\d{3}){0,2}|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}"
    r"|(?:6011|65\d\d|64[4-9]\d)\d{12,15}|35\d{14})$"
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?:[ \u00a0\u202f]?[A-Z0-9]){11,30}")
_IBAN_LENGTHS = {
    country: int(length)
    for country, length in re.findall(
        "([A-Z]{2})([0-9]{2})",
        "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BR29BY28CH21CR22CY28CZ24DE22DK18DO28EE20EG29ES24FI18FO18FR27GB22GE22GI23GL18"
        "GR27GT28HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20LB28LC32LI21LT20LU20LV21MC27MD24ME22MK19MR27MT31MU30NL18NO15PK24"
        "PL28PS29PT25QA29RO24RS22SA24SC31SE24SI19SK24SM27TL23TN24TR26UA29VA22VG24XK20",
    )
}

_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"A(?:KIA|SIA)[0-9A-Z]{16}(?![0-9A-Za-z])"
    r"|gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{22,255}|glpat-[\w-]{20,64}"
    r"|sk-(?=[\w-]{0,200}[0-9])[A-Za-z0-9_-]{20,200}|[spr]k_(?:live|test)_[A-Za-z0-9]{16,255}"
    r"|xox[abeprs]-[A-Za-z0-9-]{10,255}|AIza[0-9A-Za-z_-]{35}|hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}"
    r"|pypi-[\w-]{50,255}|SG\.[\w-]{16,32}\.[\w-]{16,64}|ya29\.[\w-]{20,255}"
    r"|eyJ[\w-]{8,2000}\.eyJ[\w-]{4,4000}\.[\w-]{8,1000})"
)
_PRIVATE = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----(?:"
    r"(?:[A-Za-z0-9+/=\s:,.()@<>\\]|-(?!----)){0,20000}-----END [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----"
    r"|(?:(?:\s|\\[nr])*[A-Za-z0-9+/=]{16,})*)"
)
_BEFORE_SECRET = 48  # characters
_SECRET_MARK = re.compile("key|token|secret|passw|pwd|credential", re.IGNORECASE)
_SECRET = re.compile(
    r"(?<![A-Za-z])(?:api|access|auth|secret|private|client|account|signing|encryption|bearer)[ _-]?"
    r"(?:key|token|secret)s?[\"'`]?(?: is)?\s{0,3}(?::|=|=>|:=)?\s{0,3}[\"'`]?([A-Za-z0-9+/_=.~-]{16,200})"
    r"|(?<![A-Za-z])(?:token|secret|password|passwd|pwd|credentials?)[\"'`]?\s{0,3}(?::|=|=>|:=)\s{0,3}[\"'`]?"
    r"([^\s\"'`<>]{8,200})",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One piece of personal data: its kind (one of KINDS) and its place in the text."""

    kind: str
    start: int
    stop: int


def may_have_personal_data(texts: Sequence[str]) -> list[int]:
    """Return the positions of the texts that contain a digit, an @ or the words of a private key."""
    if len(texts) == 1:
        return [0]
    joined = "\n".join(texts)
    if _PRIVATE_KEY in joined:
        return list(range(len(texts)))
    ends, found, at = list(accumulate([len(text) + 1 for text in texts])), [], 0
    number = 0
    while hint := _HINT.search(joined, at):
        number = bisect_right(ends, hint.start(), number)
        found.append(number)
        at = ends[number]
    return found


def find_personal_data(text: str) -> list[Finding]:
    """Return all personal data in a text, in order and without overlaps. The time is linear in the text."""
    if not _HINT.search(text) and _PRIVATE_KEY not in text:  # every finding contains one of these
        return []
    spans = [
        (start, rank, stop, kind)
        for rank, search in enumerate((_keys, _emails, _accounts, _numbers))
        for kind, start, stop in search(text)
    ]
    found: list[tuple[int, Finding]] = []
    for start, rank, stop, kind in sorted(spans):
        if found and start < found[-1][1].stop:
            if found[-1][0] <= rank:
                continue
            found.pop()
        found.append((rank, Finding(kind, start, stop)))
    return [finding for _, finding in found]


def mask(text: str, findings: list[Finding]) -> str:
    """Return the text with findings replaced by [EMAIL], [PHONE], [CARD], [IBAN] and [KEY]."""
    parts, end = [], 0
    for finding in findings:
        parts += [text[end : finding.start], f"[{finding.kind.upper()}]"]
        end = finding.stop
    return "".join([*parts, text[end:]])


Spans = Iterator[tuple[str, int, int]]


def _keys(text: str) -> Spans:
    if _PRIVATE_KEY in text:
        for match in _PRIVATE.finditer(text):
            yield "key", *match.span()
    for start, stop in _words_with_digits(text):
        if stop - start < 8:
            continue
        for match in _KEY.finditer(text, start, stop):
            yield "key", *match.span()
        before = max(0, start - _BEFORE_SECRET)
        if _SECRET_MARK.search(text, before, stop):
            for match in _SECRET.finditer(text, before, stop):
                group = 1 if match[1] is not None else 2
                value = match[group].rstrip(".,;:)")
                if _is_secret(value, shortest=16 if group == 1 else 8):
                    yield "key", match.start(group), match.start(group) + len(value)


def _words_with_digits(text: str) -> Iterator[tuple[int, int]]:
    """Yield the places of words that contain a digit. Every key contains one, and prose has few such words."""
    stop = 0
    while digit := _DIGIT.search(text, stop):
        start = digit.start()
        while start > stop and not text[start - 1].isspace():
            start -= 1
        space = _SPACE.search(text, digit.end())
        stop = space.start() if space else len(text)
        yield start, stop


def _is_secret(value: str, shortest: int) -> bool:
    """Return whether a value looks random: it mixes letters and digits, and repeats no character too often."""
    if len(value) < shortest or not re.search("[0-9]", value) or not re.search("[A-Za-z]", value):
        return False
    return len(set(value)) * 5 >= min(len(value), 40) * 2


def _emails(text: str) -> Spans:
    at = text.find("@")
    while at >= 0:
        local = next(filter(None, (pattern.search(text, max(0, at - 64), at) for pattern in _LOCALS)), None)
        domain = next(filter(None, (pattern.match(text, at + 1, at + 256) for pattern in _DOMAINS)), None)
        if local and domain and (name := local[0].lstrip("._'-")):
            yield "email", at - len(name), domain.end()
        at = text.find("@", at + 1)


def _accounts(text: str) -> Spans:
    for first, last in _words_with_digits(text):
        for match in _IBAN.finditer(text, first, last + 60):
            if match.start() >= last:
                break
            length = _IBAN_LENGTHS.get(match[0][:2], 0)
            plain = re.sub(r"\s", "", match[0])[:length]
            turned = "".join(str(int(character, 36)) for character in plain[4:] + plain[:4])
            if length and len(plain) == length and int(turned) % 97 == 1:
                stop = match.start()
                for _ in plain:  # capitals of the sentence may follow the number
                    stop += 1 + text[stop].isspace()
                yield "iban", match.start(), stop


def _numbers(text: str) -> Spans:
    for match in _NUMBER.finditer(text):
        if _NUMBER_GOES_ON.search(text, max(0, match.start() - 2), match.start()) or _MORE_FOLLOWS.match(
            text, match.end()
        ):
            continue
        groups = [group.span() for group in _GROUP.finditer(text, match.start(), match.end())]
        if len(groups) > _MAX_IN_A_ROW:
            continue
        gaps = [text[a[1] : b[0]] for a, b in pairwise(groups)]
        at = 0
        while at < len(groups):
            for last in range(min(at + _MAX_GROUPS, len(groups)) - 1, at - 1, -1):
                if found := _number(text, groups, gaps, at, last):
                    yield found
                    at = last
                    break
            at += 1


def _number(
    text: str, groups: list[tuple[int, int]], gaps: list[str], first: int, last: int
) -> tuple[str, int, int] | None:
    """Return the finding in groups first … last of a row of numbers, if they form a separate number."""
    start, stop = groups[first][0], groups[last][1]
    lengths = tuple(b - a for a, b in groups[first : last + 1])
    if not 7 <= sum(lengths) <= 19:
        return None
    inside = set(gaps[first:last])
    is_first, is_last = first == 0, last == len(groups) - 1
    # In a row of groups with the same separators, some groups alone are not a number.
    if not is_first and gaps[first - 1] in inside:
        return None
    same_after = not is_last and gaps[last] in inside
    value = text[start:stop]
    if _is_card(value, lengths) and not (same_after and groups[last + 1][1] - groups[last + 1][0] == lengths[-1]):
        return "card", start, stop
    if same_after:
        return None
    if text[start - 1 : start] == "(" and ")" in value:
        start -= 1
    plus = text[start - 1 : start] == "+"
    before = text[max(0, start - 40) : start] if is_first and is_last else ""
    return ("phone", start - plus, stop) if _is_phone(text[start:stop], lengths, plus, before) else None


def _is_card(value: str, lengths: tuple[int, ...]) -> bool:
    digits = re.sub(r"\D", "", value)
    if not _CARD_ISSUERS.match(digits) or len(set(digits)) < 2:
        return False
    if len(lengths) > 1 and (lengths not in _CARD_GROUPS or re.search(r"[^0-9 \u00a0-]|\D\D", value)):
        return False
    doubled = [int(digit) * 2 for digit in digits[-2::-2]]
    return (sum(map(int, digits[-1::-2])) + sum(number // 10 + number % 10 for number in doubled)) % 10 == 0


def _is_phone(value: str, lengths: tuple[int, ...], plus: bool, before: str) -> bool:
    digits = re.sub(r"\D", "", value)
    if not 7 <= len(digits) <= 15 or len(set(digits)) < 3:
        return False
    if plus:
        return digits[0] != "0" and len(digits) >= 8
    if _DATE.match(value) or _counts_up(value):
        return False
    if _AMERICAN.match(value):
        return True
    if digits.startswith("00"):
        return digits[2:3] != "0" and len(digits) >= 11 and len(lengths) > 1
    # A trunk prefix: area code and number, 9 to 11 digits. ISBNs and decimals have the 0 alone.
    if digits[0] == "0" and 9 <= len(digits) <= 11 and lengths[0] >= 2:
        return len(lengths) > 1 or len(digits) >= 10
    return not _COUNTS.match(value) and bool(_CONTEXT.search(before))


def _counts_up(value: str) -> bool:
    """Return whether the groups count up, as in 01 02 03 04 05."""
    numbers = [int(group) for group in _GROUP.findall(value)]
    return len(numbers) > 2 and all(b == a + 1 for a, b in pairwise(numbers))

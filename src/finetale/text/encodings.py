"""Recognise encodings: byte order marks, binary data, and a guess for what is not UTF-8. Knows no files and no lines.

The guess decodes a sample with each candidate. The score is the share of the characters outside ASCII that are common
in a language of that encoding. charset-normalizer is the fallback only: alone, it mistook French and English in
Windows-1252 for Windows-1250 ("mčre"), Japanese for Korean, and a short Big5 text for Shift-JIS, at every sample size.
"""

from __future__ import annotations

import codecs
import re

from charset_normalizer import from_bytes

SAMPLE_BYTES = 1 << 16

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16-LE, because it starts with the same bytes
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

# (offset, bytes, name) of formats that people give by mistake.
MAGIC = (
    (0, b"%PDF-", "a PDF document"),
    (0, b"PK\x03\x04", "a ZIP archive (docx, odt, epub and xlsx are such)"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document (doc, xls)"),
    (0, b"{\\rtf", "an RTF document"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"GIF8", "a GIF picture"),
    (0, b"\x7fELF", "a program (ELF)"),
    (0, b"MZ\x90\x00", "a program (EXE)"),
    (0, b"\x1f\x8b", "gzip data"),
    (0, b"\x28\xb5\x2f\xfd", "Zstandard data"),
    (0, b"BZh", "bzip2 data"),
    (0, b"\xfd7zXZ\x00", "xz data"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"SQLite format 3\x00", "a SQLite database"),
    (0, b"ID3", "an MP3 recording"),
    (257, b"ustar", "a tar archive"),
)

PUNCTUATION = "“”‘’„‚«»‹›–—…°§·•€£©®´¿¡\u00a0\u00ad"
CJK_PUNCTUATION = "，。、：；？！“”‘’（）《》「」『』…—\u3000"

# Letters outside ASCII that occur in running text. If two scores are equal, the earlier encoding wins.
# East Asian: the most frequent characters. Strict decoding in a wrong encoding gives rare ones.
SIMPLIFIED = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去"
    "法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实很老山头见又声手走问给什听"
)
TRADITIONAL = (
    "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之年過發後作裡用道行所然家種事成方多經麼去"
    "法學如都同現當沒動面起看定天分還進好小部其些主樣理心她本前開但因只從想實很老山頭見又聲手走問給什聽"
)
KANA = "のにはをたがでてとしれさあるいももなかられこまりくすっおそうけちどだわきめせよやみつんーアイスントルラリ"
HANGUL = (
    "이다는을에가고의하지은를도어나로리사그기한자아서있니들으라인만시내대여일수거게면해보를무정부마주스말었았것"
    "습와과오던때할두못안더래야며까저우없생장전조소상구원성동문신모제간"
)
EAST_ASIAN = {
    "utf-16-le": (SIMPLIFIED, TRADITIONAL, KANA, HANGUL),
    "utf-16-be": (SIMPLIFIED, TRADITIONAL, KANA, HANGUL),
    "gb18030": (SIMPLIFIED,),
    "big5": (TRADITIONAL,),
    "cp932": (KANA,),
    "euc-jp": (KANA,),
    "cp949": (HANGUL,),
}
EAST_ASIAN_SHARE = 0.25

# Latin: the letters of each language; capitals count less. Other scripts: all letters, and the most frequent ones.
# These count only in words without ASCII letters, so that the "é" of "café", read as Cyrillic, does not count.
WEST = (
    "äöüß",
    "àâçèéêëîïôùûüœæ",
    "áéíñóúü",
    "àèéìòù",
    "ãáàâçéêíóôõú",
    "åäöéæø",
    "áðéíóúýþæö",
    "áàäèéëêïíóöüû",
    "àçèéíïòóúü",
)
CENTRAL = ("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "áéíóöőúüű", "ăâîşţ", "čćđšž")
LATIN = {
    "cp1252": WEST,
    "cp1250": CENTRAL,
    "iso-8859-2": CENTRAL,
    "cp1254": ("çğıöşüâî",),
    "mac-roman": WEST,
}
OTHER_SCRIPTS = {
    "cp1251": ("а-яёіїєґА-ЯЁІЇЄҐ", "оеаинтсрвлкмдпуяыьі"),
    "koi8-r": ("а-яёА-ЯЁ", "оеаинтсрвлкмдпуяыь"),
    "cp866": ("а-яёА-ЯЁ", "оеаинтсрвлкмдпуяыь"),
    "cp1253": ("Ά-ώ", "αοιετσνηυρπκμλςάίέόήύώ"),
    "cp1255": ("\u05b0-ת", "יוהלארתבמשנם"),
    "cp1256": ("\u0621-\u0655", "اليمونرتبةعدسفهكق"),
}
OTHER_SHARE = 0.6
CAPITAL_WEIGHT = 0.6
MAC_ROMAN_PRIOR = 0.9  # it is rare now, and has letters where other encodings have symbols
LIBRARY_BYTES = 16  # bytes outside ASCII that charset-normalizer needs; with fewer it took Chinese words for Big5

# Well-formed sequences of UTF-8, for text that is not UTF-8 throughout.
UTF8_SEQUENCE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
LOW_CONTROLS_BUT_NUL = re.compile(rb"[\x01-\x08\x0b\x0e-\x1f]")
HIGH_BYTE = re.compile(rb"[\x80-\xff]")
ASCII = re.compile("[\x00-\x7f]+")
LOW_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f]")
PLAUSIBLE = re.compile(
    f"[\t\n\r\x20-\x7e\xa0-\u024f\u0386-\u045f\u05d0-\u05ea\u0620-\u064a{CJK_PUNCTUATION}{SIMPLIFIED}{TRADITIONAL}{KANA}{HANGUL}]"
)
LOW_CONTROLS = bytes(code for code in range(32) if code not in b"\t\n\r\f\x1b") + b"\x7f"


_EAST_ASIAN = {
    name: [re.compile(f"[{letters}{CJK_PUNCTUATION}]") for letters in alphabets]
    for name, alphabets in EAST_ASIAN.items()
}
_LATIN = {
    name: [
        (re.compile(f"[{letters}{PUNCTUATION}]"), re.compile(f"[{letters.replace('ß', '').upper()}]"))
        for letters in alphabets
    ]
    for name, alphabets in LATIN.items()
}
_OTHER = {
    name: (re.compile(f"(?<![A-Za-z])[{every}]{{2,}}(?![A-Za-z])"), re.compile(f"[{common}]"))
    for name, (every, common) in OTHER_SCRIPTS.items()
}


def byte_order_mark(head: bytes) -> tuple[str, int] | None:
    """Return (encoding, length of the mark) when the bytes start with a byte order mark, else None."""
    for mark, encoding in BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding, len(mark)
    return None


def binary_kind(head: bytes) -> str | None:
    """Return the kind of binary data, or None if it may be text. Not for text in UTF-16 and UTF-32."""
    for offset, magic, name in MAGIC:
        if head.startswith(magic, offset):
            return name
    sample = head[:SAMPLE_BYTES]
    num_nuls = sample.count(0)
    num_controls = len(sample) - len(sample.translate(None, LOW_CONTROLS)) - num_nuls
    if num_controls >= 8 and num_controls > 0.1 * len(sample):
        return "binary data (a tenth and more of it are control characters)"
    if num_nuls >= 8 and num_nuls > 0.02 * len(sample):
        return "binary data (full of NUL bytes)"
    return None


def utf16_without_mark(sample: bytes) -> str | None:
    """Return "utf-16-le" or "utf-16-be" for UTF-16 without a byte order mark, else None.

    UTF-16 is recognised by the NUL bytes of its ASCII characters.
    """
    num_nuls = sample.count(0)
    if not num_nuls:
        return None
    if num_nuls < 0.4 * len(sample) and sample.isascii() and not LOW_CONTROLS_BUT_NUL.search(sample):
        return None  # ASCII with some NULs; in UTF-16 every second byte would be NUL
    text, _ = _decoded(sample, "utf-8")
    if text and num_nuls < 0.25 * len(sample) and len(LOW_CONTROL.findall(text)) - num_nuls < 0.02 * len(sample):
        return None  # good text apart from some NULs
    shares = {}
    for encoding in ("utf-16-le", "utf-16-be"):
        text, _ = _decoded(sample, encoding)
        clean = text and len(LOW_CONTROL.findall(text)) < 0.02 * len(text)
        shares[encoding] = len(PLAUSIBLE.findall(text)) / len(text) if clean else 0.0
    best = max(shares, key=lambda encoding: shares[encoding])
    return best if shares[best] >= EAST_ASIAN_SHARE else None


def utf8_share(sample: bytes) -> float:
    """Return the share of the bytes outside ASCII that belong to well-formed UTF-8 sequences.

    Measured: 0 to 0.25 for Western text in a single-byte encoding, 0.15 to 0.4 for Chinese, Japanese and Korean in
    theirs, near 1 for UTF-8 with a few damaged bytes.
    """
    num_high = len(HIGH_BYTE.findall(sample))
    return sum(map(len, UTF8_SEQUENCE.findall(sample))) / num_high if num_high else 1.0


def guess_encoding(sample: bytes) -> str | None:
    """Return the most likely encoding of text that is not UTF-8. None if no encoding fits.

    Args:
        sample: bytes from the start of a line of the text. The first 64 KiB are examined. The end may be cut anywhere.
    """
    sample = sample[:SAMPLE_BYTES]
    scores = {name: _score_east_asian(sample, name) for name in _EAST_ASIAN}
    best = max(scores, key=lambda name: scores[name])
    if scores[best] >= EAST_ASIAN_SHARE:
        return best
    scores = {name: _score_latin(sample, name) for name in _LATIN}
    scores |= {name: _score_other(sample, name) for name in _OTHER}
    best = max(scores, key=lambda name: scores[name])
    if scores[best] >= OTHER_SHARE:
        return best
    if len(HIGH_BYTE.findall(sample)) < LIBRARY_BYTES:
        return None
    match = from_bytes(sample).best()
    # charset-normalizer calls short East Asian text UTF-16. Real UTF-16 was recognised before.
    if match is None or match.encoding == "ascii" or match.encoding.startswith("utf"):
        return None
    return match.encoding.replace("_", "-")


def is_single_byte(encoding: str) -> bool:
    """Return whether each byte of this encoding is one character."""
    try:
        return len(bytes(range(0xA1, 0xB1)).decode(encoding, "replace")) == 16
    except UnicodeError:
        return False


def _decoded(sample: bytes, encoding: str) -> tuple[str, str]:
    """Return (text, its characters outside ASCII). Both are empty if the sample is not in this encoding."""
    try:
        text = codecs.getincrementaldecoder(encoding)("strict").decode(sample)
    except UnicodeDecodeError:
        return "", ""
    return text, ASCII.sub("", text)


def _score_east_asian(sample: bytes, encoding: str) -> float:
    _, outside = _decoded(sample, encoding)
    return max(len(common.findall(outside)) for common in _EAST_ASIAN[encoding]) / max(1, len(outside))


def _score_latin(sample: bytes, encoding: str) -> float:
    _, outside = _decoded(sample, encoding)
    if encoding == "mac-roman" and len(outside) < 4:  # rare now, and one "É" of Windows-1252 is "…" here
        return 0.0
    hits = max(
        len(full.findall(outside)) + CAPITAL_WEIGHT * len(half.findall(outside)) for full, half in _LATIN[encoding]
    )
    return hits / max(1, len(outside)) * (MAC_ROMAN_PRIOR if encoding == "mac-roman" else 1)


def _score_other(sample: bytes, encoding: str) -> float:
    text, outside = _decoded(sample, encoding)
    words, common = _OTHER[encoding]
    return len(common.findall("".join(words.findall(text)))) / max(1, len(outside))

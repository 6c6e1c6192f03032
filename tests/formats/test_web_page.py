"""Test web pages: the article is read, navigation is omitted and counted, and no other text is lost."""

from __future__ import annotations

import gzip
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetale.config import TextSettings
from finetale.errors import SourceError
from finetale.text.formats.html import elements
from finetale.text.reading import read_parts

PROSE = (
    "The ferry was late again, and the ferryman blamed the moon.",
    "Nobody on the pier believed him, except for the child with the lantern, who had seen the moon do worse.",
    "“It moves the water,” she said. “Why would it not move a boat?”",
)
PARAGRAPHS = "".join(f"<p>{text}</p>\n" for text in PROSE)
STORY = "\n\n".join(PROSE)

Read = Callable[..., tuple[list[str], dict[str, Any]]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Write a page, read it, and return its documents and the entry of its file in the report."""

    def read(page: str | bytes, name: str = "page.html", **settings: Any) -> tuple[list[str], dict[str, Any]]:
        path = tmp_path / name
        path.write_bytes(page.encode() if isinstance(page, str) else page)
        parts, report = read_parts([str(path)], TextSettings(validation_fraction=0, test_fraction=0, **settings))
        texts = [part.text for part in parts]
        return texts, report.to_dict()["files"][0]

    return read


def of_body(read: Read, body: str) -> str:
    """Return the text of a page with this body."""
    return "\n---\n".join(read(f"<!DOCTYPE html><html><body>{body}</body></html>")[0])


ARTICLE = f"""<!DOCTYPE html>
<html lang="en"><head><title>The late ferry – Harbour News</title><style>p {{ color: red }}</style>
<script>var text = "<p>not text</p>";</script></head>
<body>
<a class="skip-link" href="#main">Skip to content</a>
<header><a href="/">Harbour News</a><nav><ul><li><a href="/">Home</a></li><li><a href="/boats">Boats</a></li></ul></nav>
<form><label>Search</label><input value="fish"><button>Go</button></form></header>
<main id="main"><article><h1>The late ferry</h1><img src="a.png" alt="a ferry at night">
{PARAGRAPHS}<div hidden>Subscribe to read on.</div></article></main>
<aside><h2>Most read</h2><ol><li><a href="/1">Ten knots</a></li></ol></aside>
<div class="cookie-banner">We use cookies.</div>
<footer>© Harbour News <a href="/imprint">Imprint</a></footer></body></html>"""

BLOG = f"""<html><head><title>The late ferry | Anna's notes</title></head><body>
<div id="wrap"><div class="header"><h2><a href="/">Anna's notes</a></h2></div>
<ul class="menu"><li><a href="/a">About</a><li><a href="/b">Books</a><li><a href="/c">Contact</a></ul>
<div class="post"><h1>The late ferry</h1>{PARAGRAPHS}
<p>More about the pier is <a href="/pier">in an older post</a>.</p></div>
<div class="sidebar"><h3>Archive</h3><ul><li><a href="/2021">2021</a></li></ul></div>
<div id="comments"><h3>2 comments</h3><p>First!</p></div>
<div class="footer">Powered by wind</div></div></body></html>"""


def test_an_article_is_read_without_navigation(read: Read) -> None:
    texts, account = read(ARTICLE)
    assert texts == [f"The late ferry\n\n{STORY}"]
    assert account["left_out"] == {
        "advertisement": 1,
        "footer": 1,
        "header": 1,
        "hidden passage": 1,
        "passage around the article": 1,
        "picture": 1,
        "sidebar": 1,
    }
    assert account["kind"] == "html"


def test_a_blog_post_without_a_marked_article_is_read_without_navigation(read: Read) -> None:
    texts, account = read(BLOG)
    assert texts == [f"Anna's notes\n\nThe late ferry\n\n{STORY}\n\nMore about the pier is in an older post."]
    assert account["left_out"] == {"comment section": 1, "footer": 1, "menu": 1, "sidebar": 1}


@pytest.mark.parametrize(
    "wrap",
    [
        "{}",
        "<aside>{}</aside>",
        "<form>{}</form>",
        "<div hidden>{}</div>",
        "<nav>{}</nav>",
        '<div class="sidebar">{}</div>',
        '<div style="display: none">{}</div>',
        "<noscript>{}</noscript>",
        "<main></main>{}",
        "<article><p>Ad</p></article>{}",
        '<div class="footer">{}</div>',
        "<header><a href=/>x</a>{}</header>",
    ],
)
def test_a_page_without_an_obvious_article_keeps_all_its_text(read: Read, wrap: str) -> None:
    text = of_body(read, wrap.format(PARAGRAPHS))
    assert text.removeprefix("Ad\n\n").removeprefix("x\n\n") == STORY


def test_omitted_text_around_a_short_article_is_reported_with_its_share(read: Read) -> None:
    links = "".join(f"<li><a href=/{n}>A page about the number {n}</a></li>" for n in range(50))
    texts, account = read(f"<body><nav><ul>{links}</ul></nav><article>{PARAGRAPHS}</article></body>")
    assert texts == [STORY]
    assert account["problems"] == {"page_furniture": 1}
    assert account["left_out"] == {"menu": 1}


def test_the_title_before_an_article_is_kept(read: Read) -> None:
    page = f"<title>The late ferry – News</title><header><a href=/>News</a><h1>The late ferry</h1></header>\
<main>{PARAGRAPHS}</main>"
    assert read(page)[0] == [f"The late ferry\n\n{STORY}"]


def test_headings_of_level_1_start_chapters(read: Read) -> None:
    page = f"<p>Before.</p><h1>Part One</h1><h1>The<br>pier</h1>{PARAGRAPHS}<h2>Night</h2><p>Dark.</p>"
    page += "<h1>Day</h1><p>Light.</p>"
    assert read(page, documents="chapter")[0] == [
        "Before.",
        f"Part One\n\nThe pier\n\n{STORY}\n\nNight\n\nDark.",
        "Day\n\nLight.",
    ]
    (text,) = read(page)[0]
    assert text == f"Before.\n\nPart One\n\nThe pier\n\n{STORY}\n\nNight\n\nDark.\n\nDay\n\nLight."


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("<p>one<br>two<br/>three</p>", "one\ntwo\nthree"),
        ("<div>one<br><br>two<br><br><br>three</div>", "one\n\ntwo\n\nthree"),
        ("<div>one</div><div>two</div>", "one\n\ntwo"),
        ("<div>one</div><div>two</div><div><br></div><div>three</div>", "one\ntwo\n\nthree"),
        ("one<p>two<div>three", "one\n\ntwo\n\nthree"),
        ("<p>a <b>b</b><i>c</i>\n  d\te</p>", "a bc d e"),
        ("<p>&lt;b&gt; &amp; caf&eacute; &#8220;x&#x201d; &hellip; &#150; &nope;</p>", "<b> & café “x” … – &nope;"),
        ("<p>long\u00adword and zero\u200bwidth</p>", "longword and zerowidth"),
        ("<p>4&nbsp;p.m.</p><p>&nbsp;</p><p>x</p>", "4\u00a0p.m.\n\nx"),
        ("<ul><li>one<li>two<ul><li>inner</ul><li>three</ul>after", "- one\n- two\n  - inner\n- three\n\nafter"),
        ("<ol start=3><li>one<li><p>two</p><p>more</p></ol>", "3. one\n4. two\n\n  more"),
        ("<ol><li value=7>one</li><li>two</li></ol>", "7. one\n8. two"),
        ("<dl><dt>Pier<dd>wood<dt>Moon<dd>stone</dl>", "Pier\nwood\n\nMoon\nstone"),
        ("<table><tr><th>a<th>b<tr><td>1<td><td>3</table>", "a | b\n1 |  | 3"),
        ("<table><tr><td><p>one</p><p>two</p></table>", "one\n\ntwo"),
        (f"<table><tr><td>Left</td><td>{PARAGRAPHS}{PARAGRAPHS}{PARAGRAPHS}</td></table>", "Left" + f"\n\n{STORY}" * 3),
        ("<pre>\n a\n\n   b  c\n</pre>", "a\n\n   b  c"),
        ("<p>x</p><pre>  a\n b</pre>", "x\n\n  a\n b"),
        ("<p><ruby>漢<rp>(</rp><rt>かん</rt><rp>)</rp>字<rt>じ</rt></ruby>です</p>", "漢字です"),
        ("<p>one</p><hr><p>two</p><hr>", "one\n\n* * *\n\ntwo"),
        ("<p>She said <q>no</q>.</p>", "She said “no”."),
        ("<p>x<script>y</script><style>z</style><select><option>q</select></p>", "x"),
        ("<p>a<span hidden>b</span><span aria-hidden=true>c</span>d</p>", "ad"),
        ("<blockquote>one</blockquote><figure><img alt=no><figcaption>two</figcaption></figure>", "one\n\ntwo"),
        ("<p>X.<sup><a href='#n' id=r>1</a></sup></p><p>Y.</p><p id=n><a href='#r'>1</a> A note.</p>", "X.\n\nY."),
        ("<p>See <a href='#two'>2</a>.</p><p id=two>Two.</p>", "See 2.\n\nTwo."),
        ("<p>A <a href='#c1' id=t1>1</a></p><h2 id=c1><a href='#t1'>1</a></h2><p>x</p>", "A 1\n\n1\n\nx"),
        ("<p>m<sup>2</sup> and <a href='/x#y'>x</a></p>", "m2 and x"),
        ("<p>a\x00b</p>", "ab"),
    ],
)  # fmt: skip
def test_elements_become_text(read: Read, body: str, text: str) -> None:
    assert of_body(read, body) == text


def test_xhtml_is_read_with_empty_elements_and_cdata(read: Read) -> None:
    page = (
        '<?xml version="1.0"?><!DOCTYPE html [ <!ATTLIST p x CDATA #IMPLIED> ]>'
        '<html xmlns="http://www.w3.org/1999/xhtml"><head><title/><script src="x.js"/></head>'
        '<body><p>one<a id="x"/> two<br/></p><div/><p><![CDATA[a < b]]></p></body></html>'
    )
    assert read(page, "page.xhtml")[0] == ["one two\n\na < b"]


CHINESE = "渡船又遲到了，船夫把責任推給月亮。碼頭上沒有人相信他。"


@pytest.mark.parametrize(
    ("declared", "encoding", "text"),
    [
        ("gb2312", "gb18030", "渡船又迟到了，船夫把责任推给月亮。"),
        ("gb2312", "gb18030", "小小"),  # valid UTF-8 by chance
        ("GBK", "gb18030", "渡船又迟到了，鎔。"),
        ("gb18030", "gb18030", "渡船又迟到了，船夫把责任推给月亮。"),
        ("big5", "big5", CHINESE),
        ("Big5-HKSCS", "big5hkscs", "嘅" + CHINESE),
        ("Shift_JIS", "cp932", "渡し船はまた遅れた①。"),
        ("EUC-KR", "cp949", "나룻배는 또 늦었다."),
        ("ISO-8859-1", "cp1252", "Le passeur “accusait” la lune : été, œuf."),
        ("windows-1251", "cp1251", "Паром снова опоздал."),
        ("iso-2022-jp", "iso2022_jp", "渡し船はまた遅れた。"),
        ("utf-8", "utf-8", "Ça, « la lune »"),
        ("utf-8", "cp1252", "Le passeur a été en retard à cause de la lune, voilà."),  # a wrong declaration
        ("iso-8859-1", "utf-8", "Ça, « la lune » …"),  # a wrong declaration
        ("no-such-charset", "utf-8", "Ça"),
        ("zlib", "utf-8", "Ça"),
    ],
)
@pytest.mark.parametrize(
    "form",
    [
        '<meta charset="{}">',
        '<META http-equiv=Content-Type content="text/html; charset={}">',
        '<?xml version="1.0" encoding="{}"?>',
    ],
)
def test_the_declared_encoding_is_honoured(read: Read, declared: str, encoding: str, text: str, form: str) -> None:
    page = f"{form.format(declared)}<html><title>x</title><p>{text}</p></html>".encode(encoding)
    assert read(page)[0] == [text]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_byte_order_mark_overrides_a_declaration(read: Read, encoding: str) -> None:
    page = f'<meta charset="gb2312"><html><p>{CHINESE}</p></html>'.encode(encoding)
    assert read(page)[0] == [CHINESE]


def test_the_setting_overrides_a_declaration(read: Read) -> None:
    page = '<meta charset="cp1252"><p>Паром</p>'.encode("koi8-r")
    assert read(page, encoding="koi8-r")[0] == ["Паром"]
    with pytest.raises(SourceError, match=r"page\.html:1: byte 0x8f is not text in cp1252"):
        read(b'<meta charset="windows-1252"><p>\x8f</p>')


def test_a_compressed_page_and_a_page_without_suffix_are_read(read: Read) -> None:
    assert read(gzip.compress(ARTICLE.encode()), "page.html.gz")[0] == [f"The late ferry\n\n{STORY}"]
    assert read(ARTICLE, "page")[0] == [f"The late ferry\n\n{STORY}"]


def test_a_page_saved_by_a_browser_as_one_file_is_read(read: Read) -> None:
    page = (
        "From: <Saved by Blink>\nMIME-Version: 1.0\nContent-Type: multipart/related; boundary=b\n\n--b\n"
        "Content-Type: text/html\nContent-Transfer-Encoding: quoted-printable\n\n"
        '<meta charset=3D"utf-8"><article><p>It was l=\nate =E2=80=93 again.</p></article>\n--b\n'
        "Content-Type: image/png\nContent-Transfer-Encoding: base64\n\nAAAA\n--b--\n"
    )
    assert read(page, "page.mhtml")[0] == ["It was late – again."]
    with pytest.raises(SourceError, match=r"is not a saved web page \(it has no part of the type text/html\)"):
        read("Content-Type: text/plain\n\nx", "page.mht")


HOSTILE = {
    "entities": (
        '<!DOCTYPE html [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;">]><html><p>&b;</p></html>',
        "declares its own entities (<!ENTITY), which can grow without limit and are not read",
    ),
    "external": (
        '<!DOCTYPE html [<!ENTITY x SYSTEM "file:///etc/passwd">]><html><p>&x;</p></html>',
        "declares its own entities (<!ENTITY), which can grow without limit and are not read",
    ),
    "unclosed": ("<!DOCTYPE html [ <p>text</p>", "declares its own entities"),
    "nul": ("\x00" * 5000, "is binary data (full of NUL bytes)"),
    "large": ("<p>" + "word " * ((65 << 20) // 5), "is a page of more than 64 MiB, the most that is read"),
    "deep": ("<div>" * 200_001 + "x", "its page has more than 200,000 elements nested in each other"),
    "many": ("<p>x" * 10_001, "its page has more than 10,000 paragraphs"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pages_give_one_error_sentence(read: Read, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elements, "MAX_BLOCKS", 10_000)  # with the real limit the page takes 6 s
    page, sentence = HOSTILE[name]
    with pytest.raises(SourceError) as caught:
        read(page)
    assert sentence in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "page",
    [
        "<div>" * 100_000 + "deep" + "</div>" * 100_000,
        "<b>" * 100_000 + "deep",
        "<nav>" * 50_000 + "deep",
        "<table><tr><td>" * 20_000 + "deep",
        "<ul><li>" * 1000 + "deep",
        "deep" + "<a href='#x'>1" * 20_000,
        "deep" + "<![CDATA[" * 100_000,
        "deep" + "<!--" * 100_000,
        "deep<p " + "a=" * 100_000,
        "<?xml?>deep" + "<p /" * 100_000,
        "<html xmlns=''>deep" + "<p " * 100_000 + "/>",
        "<!doctype html " + "x" * 100_000 + ">deep",
        "deep" + "<meta " * 20_000,
        "deep<p id=a><a href='#a'>1</a>" * 10_000,
    ],
    ids=lambda page: page[:12],
)
def test_unusual_pages_are_read_in_linear_time(read: Read, page: str) -> None:
    start = time.process_time()
    texts, _ = read(page)
    assert "deep" in texts[0] if "deep" in page[:50] or texts else page
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 << 20

"""Test LaTeX: commands, omitted content, chapters and their lines, hostile files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from finetale.config import TextSettings
from finetale.text import read_parts
from finetale.text.documents import Part


def read(folder: Path, content: str, **settings: object) -> tuple[list[Part], dict[str, Any]]:
    path = folder / "a.tex"
    path.write_text(content, encoding="utf-8")
    resolved = TextSettings.resolve({"validation_fraction": 0, "test_fraction": 0, **settings})
    parts, report = read_parts([str(path)], resolved)
    return list(parts), json.loads(json.dumps(report.to_dict()))


def text_of(folder: Path, content: str) -> str:
    (part,) = read(folder, content)[0]
    return part.text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (r"\emph{The} \textbf{lamp \textit{sang}}.", "The lamp sang."),
        ("``It is,'' she said, `not' yet---or 9--10.", "“It is,” she said, ‘not’ yet—or 9–10."),
        (r"Fish~\& chips: 3\% of \$5, \#1, a\_b, \{x\}", "Fish\u00a0& chips: 3% of $5, #1, a_b, {x}"),
        (
            r"Ma\"elle, Qu\'er\`e, \^ile, na\"{\i}ve, \c{c}a, \v{s}, \~n, \H{o}",
            "Maëlle, Quérè, île, naïve, ça, š, ñ, ő",
        ),
        (r"stra\ss e, \oe uvre, \AA rhus, \o re, wait\ldots{} no\dots", "straße, œuvre, Århus, øre, wait… no…"),
        ("one\ntwo % a comment\n  three\n\n% alone\nfour%\n  five", "one two three\n\nfourfive"),
        ("end % a comment\n\nstart", "end\n\nstart"),
        (r"line one\\line two\\*[2pt] line three", "line one\nline two\nline three"),
        (r"A formula $a_1 + \{b\}$ and \(c\%\), at \$5.", r"A formula $a_1 + \{b\}$ and \(c\%\), at $5."),
        ("See\n\\[ x = \\frac{1}{2} \\]\nfor it.", "See \\[ x = \\frac{1}{2} \\] for it."),
        ("x\\begin{align*}\n a &= b \\\\\n\\end{align*}y", "x\n\n\\begin{align*}\n a &= b \\\\\n\\end{align*}\n\ny"),
        (r"\begin{verbatim}" "\n  \\emph{x}  % y\n" r"\end{verbatim}", "\\emph{x}  % y"),
        (r"\verb|\emph{x}| and \verb+a$b+", r"\emph{x} and a$b"),
        (r"\unknown[option]{kept} and \other{a}{b}", "kept and ab"),
        (r"\href{https://a.example}{a page}, \textcolor{red}{red}, \url{b.example}", "a page, red, b.example"),
        (r"\begin{center}* * *\end{center}A\vspace{1em}B\label{x}C", "* * *\n\nABC"),
        (r"\begin{enumerate}\item one \item two\end{enumerate}", "1. one\n2. two"),
        (r"\begin{tabular}{ll}a & b \\ \hline c & d\end{tabular} R\&D", "a | b\nc | d\n\nR&D"),
        ("天气\n很好，\nokay 好", "天气很好， okay 好"),
        (r"soft\-hyphen, 4\,cm", "softhyphen, 4 cm"),
        (r"\iffalse hidden \fi shown", "shown"),
        ("{unclosed \\emph{text", "unclosed text"),
        (r"\begin{document}inside\end{document} outside", "inside"),
    ],
)
def test_commands(tmp_path: Path, source: str, text: str) -> None:
    assert text_of(tmp_path, source) == text


def test_commands_defined_in_the_file_are_expanded(tmp_path: Path) -> None:
    source = r"""\newcommand{\ship}{\emph{Aurora}}
\newcommand\said[2]{``#1,'' #2 said.}
\def\pause{\begin{center}* * *\end{center}}
\begin{document}
The \ship{} sailed. \said{No \ship}{she}
\pause
\end{document}
"""
    assert text_of(tmp_path, source) == "The Aurora sailed. “No Aurora,” she said.\n\n* * *"


SOURCE = r"""\documentclass{book}
\title{The Ferry}
\begin{document}
\maketitle

A preface\footnote{Left \emph{out}.}, see \ref{a} and \cite[p.~3]{b}.

\chapter[Short]{The \emph{Crossing}}\label{a}
Text. \input{more} \index{x}
\section{A section}
\begin{figure}[h]\includegraphics{x}\caption{y}\end{figure}
More. % remark

\part{Two}
\chapter*{The Answer}
The end.\includegraphics[width=1cm]{y}
\end{document}
not read
"""


def test_chapters_have_their_lines_and_omitted_content_is_counted(tmp_path: Path) -> None:
    parts, report = read(tmp_path, SOURCE, documents="chapter")
    assert [(part.line, part.text) for part in parts] == [
        (4, "A preface, see and ."),
        (8, "The Crossing\n\nText.\n\nA section\n\nMore.\n\nTwo"),
        (15, "The Answer\n\nThe end."),
    ]
    assert report["content_left_out"] == {
        "picture": 2, "preamble": 1, "footnote": 1, "cross-reference": 1, "citation": 1, "included file": 1,
        "comment": 1,
    }  # fmt: skip
    assert report["files"][0]["kind"] == "latex"
    (whole,), _ = read(tmp_path, SOURCE)
    assert whole.text == "\n\n".join(part.text for part in parts)
    assert whole.line == 4


def test_sections_are_chapters_if_there_is_no_chapter(tmp_path: Path) -> None:
    parts, _ = read(tmp_path, "\\section{One}\na\n\\subsection{x}\nb\n\\section{Two}\nc", documents="chapter")
    assert [(part.line, part.text) for part in parts] == [(1, "One\n\na\n\nx\n\nb"), (5, "Two\n\nc")]


@pytest.mark.parametrize(
    "source",
    [
        "{" * 300_000,
        "\\footnote{" * 60_000,
        "\\begin{align}" * 50_000,
        "\\iffalse" * 60_000,
        "\\(" * 200_000,
        "\\newcommand{\\a}{\\a\\a}\\a x",
        "".join(
            f"\\newcommand{{\\x{chr(98 + n)}}}{{{chr(92)}x{chr(97 + n)}{chr(92)}x{chr(97 + n)}}}" for n in range(20)
        )
        + "\\xa\\xu",
        "\\section{" * 30_000,
        "\\verb" * 60_000,
    ],
    ids=range(9),
)
def test_hostile_files_take_bounded_time(tmp_path: Path, source: str) -> None:
    start = time.process_time()
    read(tmp_path, f"start {source} end")
    assert time.process_time() - start < 20

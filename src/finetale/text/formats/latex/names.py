"""What the names of LaTeX mean for its text: symbols, accents, sections, and what is left out."""

from __future__ import annotations

LIGATURES = {
    "--": "–", "---": "—", "``": "“", "''": "”", "`": "‘", "'": "’", ",,": "„", '"`': "„", "\"'": "“", "?`": "¿",
    "!`": "¡",
}  # fmt: skip

SYMBOLS = {
    "ldots": "…", "dots": "…", "textellipsis": "…", "textendash": "–", "textemdash": "—", "slash": "/",
    "textquotedblleft": "“", "textquotedblright": "”", "textquoteleft": "‘", "textquoteright": "’",
    "quotedblbase": "„", "quotesinglbase": "‚", "glqq": "„", "grqq": "“", "flqq": "«", "frqq": "»",
    "guillemotleft": "«", "guillemotright": "»", "guillemetleft": "«", "guillemetright": "»", "og": "« ", "fg": " »",
    "textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textunderscore": "_", "textbar": "|",
    "textless": "<", "textgreater": ">", "textquotesingle": "'", "textquotedbl": '"', "textbullet": "•",
    "textperiodcentered": "·", "textdegree": "°", "degree": "°", "textasteriskcentered": "*", "S": "§", "P": "¶",
    "dag": "†", "ddag": "‡", "copyright": "©", "textcopyright": "©", "textregistered": "®", "texttrademark": "™",
    "pounds": "£", "textsterling": "£", "euro": "€", "texteuro": "€", "textcent": "¢", "textyen": "¥",
    "ss": "ß", "SS": "ẞ", "ae": "æ", "AE": "Æ", "oe": "œ", "OE": "Œ", "o": "ø", "O": "Ø", "aa": "å", "AA": "Å",
    "l": "ł", "L": "Ł", "i": "ı", "j": "ȷ", "dh": "ð", "DH": "Ð", "th": "þ", "TH": "Þ", "dj": "đ", "DJ": "Đ",
    "TeX": "TeX", "LaTeX": "LaTeX", "LaTeXe": "LaTeX2e", "XeTeX": "XeTeX", "textnumero": "№", "textonehalf": "½",
    "textonequarter": "¼", "textthreequarters": "¾", "quad": " ", "qquad": " ", "enspace": " ", "thinspace": " ",
    "space": " ", "nobreakspace": "\u00a0", "textvisiblespace": "␣", "lbrack": "[", "rbrack": "]", "textsection": "§",
    "textparagraph": "¶", "textexclamdown": "¡", "textquestiondown": "¿", "checkmark": "✓", "aster": "*",
}  # fmt: skip

ACCENTS = {
    "'": "\u0301", "`": "\u0300", "^": "\u0302", '"': "\u0308", "~": "\u0303", "=": "\u0304", ".": "\u0307",
    "u": "\u0306", "v": "\u030c", "H": "\u030b", "c": "\u0327", "d": "\u0323", "b": "\u0331", "k": "\u0328",
    "r": "\u030a", "t": "\u0361",
}  # fmt: skip

LEVELS = {
    "part": 0, "chapter": 1, "section": 2, "subsection": 0, "subsubsection": 0, "paragraph": 0, "subparagraph": 0,
    "addchap": 1, "addsec": 2, "frametitle": 0,
}  # fmt: skip
"""Commands of headings. The lowest number other than 0 that occurs starts a chapter."""

BREAKS = {
    "par": "\n\n", "newline": "\x01", "linebreak": "\x01", "clearpage": "\n\n", "newpage": "\n\n", "pagebreak": "\n\n",
    "cleardoublepage": "\n\n", "bigskip": "\n\n", "medskip": "\n\n", "smallskip": "\n\n", "tabularnewline": "\x01",
    "hline": "", "toprule": "", "midrule": "", "bottomrule": "", "endhead": "", "endfirsthead": "", "endfoot": "",
    "endlastfoot": "", "centering": "", "noindent": "", "indent": "", "maketitle": "", "tableofcontents": "",
}  # fmt: skip

DEFINITIONS = {
    "newcommand", "renewcommand", "providecommand", "DeclareRobustCommand", "def", "gdef", "edef", "xdef",
    "newenvironment", "renewenvironment",
}  # fmt: skip

LEFT_OUT = {
    **dict.fromkeys(("footnote", "footnotetext", "endnote", "thanks", "sidenote"), "footnote"),
    **dict.fromkeys(("marginpar", "todo", "marginnote"), "margin note"),
    **dict.fromkeys(
        ("cite", "citep", "citet", "citeauthor", "citeyear", "parencite", "textcite", "autocite", "footcite", "nocite"),
        "citation",
    ),
    **dict.fromkeys(("ref", "pageref", "eqref", "autoref", "cref", "Cref", "nameref", "vref"), "cross-reference"),
    **dict.fromkeys(("input", "include", "subfile", "import", "subimport", "includeonly"), "included file"),
    **dict.fromkeys(("includegraphics", "includesvg", "includepdf"), "picture"),
    **dict.fromkeys(("bibliography", "printbibliography", "addbibresource"), "bibliography"),
    **dict.fromkeys(("title", "author", "date", "subtitle", "publishers"), "title block"),
}
"""Commands that are left out with their arguments → what they are counted as."""

DROPPED = {
    "label": 1, "hspace": 1, "vspace": 1, "setlength": 2, "addtolength": 2, "setcounter": 2, "addtocounter": 2,
    "pagestyle": 1, "thispagestyle": 1, "pagenumbering": 1, "usepackage": 1, "documentclass": 1, "index": 1,
    "glossary": 1, "bibliographystyle": 1, "hypertarget": 1, "hyperlink": 1, "hyperref": 0, "href": 1, "textcolor": 1,
    "colorbox": 1, "color": 1, "fontsize": 2, "selectlanguage": 1, "foreignlanguage": 1, "rule": 2, "raisebox": 1,
    "parbox": 1, "resizebox": 2, "scalebox": 1, "rotatebox": 1, "hyphenation": 1, "hypersetup": 1, "geometry": 1,
    "graphicspath": 1, "markboth": 2, "markright": 1, "addcontentsline": 3, "phantomsection": 0, "cline": 1,
    "cmidrule": 1, "multicolumn": 2, "multirow": 2, "fontfamily": 1, "fontseries": 1, "fontshape": 1, "input@path": 1,
    "RequirePackage": 1, "newcounter": 1, "newlength": 1, "stepcounter": 1, "refstepcounter": 1, "fancyhead": 1,
    "fancyfoot": 1, "fancyhf": 1, "lhead": 1, "rhead": 1, "chead": 1, "lfoot": 1, "rfoot": 1, "cfoot": 1, "lettrine": 0,
    "minipage": 1, "multicols": 1, "adjustwidth": 2, "wrapfigure": 2, "import": 2, "subimport": 2, "tikzset": 1,
    "theoremstyle": 1, "newtheorem": 2, "setmainfont": 1, "babelprovide": 1, "urlstyle": 1, "penalty": 0, "vphantom": 1,
    "hphantom": 1, "phantom": 1, "printbibliography": 0, "makebox": 0, "framebox": 0,
}  # fmt: skip
"""Commands and environments → number of their first arguments that are not text."""

TABLES = {"tabular": 1, "tabularx": 2, "longtable": 1, "tabulary": 2, "supertabular": 1, "tblr": 1}
"""Tables → number of their arguments."""

VERBATIM = {"verbatim": 0, "lstlisting": 0, "minted": 1, "Verbatim": 0, "alltt": 0}
"""Blocks that are kept as written → number of their arguments."""

MATH_BLOCKS = {
    "equation", "align", "gather", "multline", "eqnarray", "displaymath", "math", "flalign", "alignat",
}  # fmt: skip

DROPPED_BLOCKS = {
    "figure": "picture", "wrapfigure": "picture", "tikzpicture": "picture", "picture": "picture", "comment": "comment",
    "thebibliography": "bibliography", "filecontents": "included file",
}  # fmt: skip
"""Blocks that are left out → what they are counted as."""

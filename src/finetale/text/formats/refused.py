"""Files that are not read: what each is, and a way to convert it. A reader for one of them replaces its line here."""

from __future__ import annotations

from typing import NamedTuple


class Refused(NamedTuple):
    """A kind of file that is not read.

    Attributes:
        what: what the file is, with its article.
        hint: what to do, in full sentences.
        way_out: the same in a few words, for a list. Empty if there is nothing to gain.
    """

    what: str
    hint: str
    way_out: str = ""


_OTHER_TEXT = "Convert it to plain text (.txt). A copy with the suffix .txt is read unchanged, with its markup."
_WRITER = "Save it as .docx, or convert it with `soffice --headless --convert-to docx FILE`."
_CALC = "Save it as .xlsx, or convert it with `soffice --headless --convert-to xlsx FILE`."
_IMPRESS = "Save it as .pdf, or convert it with `soffice --headless --convert-to pdf FILE`."
_APPLE = "Export it from {}, which also runs in a browser on iCloud.com."
_KINDLE = (
    "Convert it with Calibre: `ebook-convert book.azw3 book.epub`. A book that is protected by DRM can't be converted."
)
_OUTLOOK = "Save its mails as .eml, or export them as .mbox with a mail program such as Thunderbird."
_CALIBRE = "Convert it with Calibre: `ebook-convert FILE book.epub`."
_DJVU = "Take its text out: `djvutxt book.djvu book.txt`. A book of scanned pages may have none."
_POSTSCRIPT = "Convert it with Ghostscript: `ps2pdf FILE`."
_XPS = "Open it and print it to a PDF file."
_NOTEBOOK = "Convert it: `jupyter nbconvert --to markdown FILE`."
_SEVEN = "Unpack it, for example with `7z x FILE`, and name the folder."
_PACKED = "Unpack it, for example with `7z x FILE`, or pack it as .gz or .zst."
_DATABASE = "Export the table with the text as .csv or .jsonl."
_TABLE = "Write it as .parquet, .csv or .jsonl with the library that made it."
_LINK = "It holds a link, not the text. Open it in the browser and download the document as .docx."
_NO_TEXT = "Leave it out, or convert what it holds to plain text (.txt)."

_KINDS = (
    ("an XML file", ".xml .svg .tei", _OTHER_TEXT, ""),
    ("a Word document of an old version", ".doc .dot", _WRITER, "save as .docx"),
    ("a document of an old word processor", ".wps .wpd .wri .sxw .hwp .lwp", _WRITER, "save as .docx"),
    ("a Pages document", ".pages", _APPLE.format("Pages as .docx"), "export as .docx"),
    ("an Excel workbook of an old or binary version", ".xls .xlt .xlsb .sxc", _CALC, "save as .xlsx"),
    ("a Numbers spreadsheet", ".numbers", _APPLE.format("Numbers as .xlsx"), "export as .xlsx"),
    ("a presentation", ".ppt .pps .pptx .ppsx .odp .sxi", _IMPRESS, "save as .pdf"),
    ("a Keynote presentation", ".key", _APPLE.format("Keynote as .pdf"), "export as .pdf"),
    ("an OpenDocument drawing", ".odg", _IMPRESS, "save as .pdf"),
    ("a Kindle e-book", ".mobi .azw .azw3 .kfx", _KINDLE, "convert to .epub"),
    ("an e-book of another kind", ".lit .lrf .pdb .prc .chm", _CALIBRE, "convert to .epub"),
    ("a DjVu document", ".djvu", _DJVU, "take out the text with djvutxt"),
    ("a PostScript document", ".ps .eps", _POSTSCRIPT, "convert to .pdf"),
    ("an XPS document", ".xps .oxps", _XPS, "print to .pdf"),
    ("a Jupyter notebook", ".ipynb", _NOTEBOOK, "convert to .md"),
    ("a link to a document of Google", ".gdoc .gsheet .gslides", _LINK, "download as .docx"),
    ("an Outlook file", ".msg .pst .ost", _OUTLOOK, "save as .eml"),
    ("an archive of a kind that is not read", ".7z .rar .ace .arj .lzh .cab .iso .dmg", _SEVEN, "unpack"),
    ("an archive that is packed once more", ".zip .tar .tgz", _SEVEN, "unpack"),
    ("a packed file", ".bz2 .xz .lz .lz4", _PACKED, "unpack"),
    ("a database", ".sqlite .sqlite3 .db .mdb .accdb", _DATABASE, "export as .csv"),
    ("an Arrow, Avro, ORC or HDF5 file", ".arrow .feather .avro .orc .h5 .hdf5", _TABLE, "write as .parquet"),
    ("a pickled or NumPy file", ".pkl .pickle .npy .npz .pt .pth .bin .safetensors .gguf", _NO_TEXT, ""),
    ("a picture", ".png .jpg .jpeg .gif .bmp .tif .tiff .webp .heic .ico", _NO_TEXT, ""),
    ("a recording", ".mp3 .wav .flac .ogg .m4a .mp4 .mov .avi .mkv .webm", _NO_TEXT, ""),
)

REFUSED: dict[str, Refused] = {
    suffix: Refused(what, hint, way_out) for what, suffixes, hint, way_out in _KINDS for suffix in suffixes.split()
}
"""Suffix → what is known of such files."""

OFTEN_WRONG = (".doc", ".dot")
"""Suffixes that RTF, .docx, HTML and plain text often have too. The first bytes decide."""

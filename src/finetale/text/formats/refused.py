"""Files that are not read: what each is, and how to convert it. A reader for one of them replaces its line here."""

from __future__ import annotations

_OTHER_TEXT = "Convert it to plain text (.txt). A copy that is called .txt is read as it is, markup included."
_OLD_WORD = "Save it as .docx, or convert it with `soffice --headless --convert-to docx FILE`."
_KINDLE = (
    "Convert it with Calibre: `ebook-convert book.azw3 book.epub`. A book that is protected by DRM can't be converted."
)
_OUTLOOK = "Save its mails as .eml, or export them as .mbox with a mail program such as Thunderbird."
_DJVU = "Take its text out: `djvutxt book.djvu book.txt`. A book of scanned pages may have none."
_NO_TEXT = "Leave it out, or convert what it holds to plain text (.txt)."

_KINDS = (
    ("an XML file", ".xml .svg .fb2 .tei", _OTHER_TEXT),
    ("a Word document of an old version", ".doc .dot", _OLD_WORD),
    ("an OpenDocument file that is not a text", ".odp .odg", _OTHER_TEXT),
    ("a Kindle e-book", ".mobi .azw .azw3 .kfx", _KINDLE),
    ("an Outlook file", ".msg .pst .ost", _OUTLOOK),
    ("a DjVu document", ".djvu", _DJVU),
    ("a Pages document", ".pages", _OTHER_TEXT),
    ("a spreadsheet", ".xls .numbers", _OTHER_TEXT),
    ("a presentation", ".ppt .pptx .key", _OTHER_TEXT),
    ("a Jupyter notebook", ".ipynb", _OTHER_TEXT),
    ("an archive", ".zip .tar .tgz .7z .rar .bz2 .xz", _OTHER_TEXT),
    ("a database", ".sqlite .sqlite3 .db .mdb", _OTHER_TEXT),
    ("an Arrow, Avro, ORC or HDF5 file", ".arrow .feather .avro .orc .h5 .hdf5", _OTHER_TEXT),
    ("a pickled or NumPy file", ".pkl .pickle .npy .npz .pt .pth .bin .safetensors .gguf", _NO_TEXT),
    ("a picture", ".png .jpg .jpeg .gif .bmp .tif .tiff .webp .heic .ico", _NO_TEXT),
    ("a recording", ".mp3 .wav .flac .ogg .m4a .mp4 .mov .avi .mkv .webm", _NO_TEXT),
)

REFUSED: dict[str, tuple[str, str]] = {
    suffix: (what, hint) for what, suffixes, hint in _KINDS for suffix in suffixes.split()
}
"""Suffix → (what the file is, how to convert it)."""

OFTEN_WRONG = (".doc", ".dot")
"""Suffixes that RTF, .docx, HTML and plain text often have too. The first bytes decide."""

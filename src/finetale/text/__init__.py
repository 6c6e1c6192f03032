"""Turns sources into clean documents in splits, and fills the data report. Knows nothing of tokens and models.

The interface is `read_parts`, with `fingerprint` to notice changed text. The modules of the package are its parts:

    sources, byte_streams, hub   what a source names, and the bytes or rows in it
    encodings, decoding          bytes to text
    lines, plain                 text to raw documents
    records, tables              text to records: JSON and Parquet; csv and tsv
    columns                      which column of records is the text, and what the others hold
    cleaning                     a raw document to a clean one
    personal                     personal data in it
    splits                       which split a document belongs to
    repeats, near, words         which earlier document a document repeats
    account, languages           the data report
    reading                      the path through all of these
    findings                     the data report as sentences
    fingerprint                  a hash of the sources' bytes
"""

from __future__ import annotations

from finetale.text.account import TextReport
from finetale.text.documents import Document, Part, Split
from finetale.text.fingerprint import file_hashes, fingerprint, read_standard_input
from finetale.text.reading import check_sources, read_parts
from finetale.text.sources import BUNDLED_SOURCE

__all__ = [
    "BUNDLED_SOURCE",
    "Document",
    "Part",
    "Split",
    "TextReport",
    "check_sources",
    "file_hashes",
    "fingerprint",
    "read_parts",
    "read_standard_input",
]

"""Turn sources into clean documents in splits, and fill the data report. Knows nothing of tokens and models.

The interface is `read_parts`, and `fingerprint` to detect changed text. The modules:

    sources, byte_streams, hub   the files or datasets that a source names, and their bytes or rows
    source_names                 names of sources for messages and reports
    archives                     the members of a zip or tar archive
    encodings, decoding          bytes to text
    formats                      one module per file format; bytes to text, chapters or records
    lines, plain                 text to raw documents
    columns, record_values       choice of the column that holds the text
    templates                    several columns to one text
    conversations                records to examples: prompts and answers
    assistant_exports, chats     exports of ChatGPT and Claude; chats between people
    cleaning                     a raw document to a clean one
    personal                     personal data in a document
    splits                       the split of a document
    repeats, near, words         earlier documents that a document repeats
    account, languages           the data report
    reading                      the pipeline of all these steps
    findings                     the data report as sentences
    fingerprint                  a hash of the sources' bytes
"""

from __future__ import annotations

from finetale.text.account import TextReport
from finetale.text.documents import Document, Part, Split
from finetale.text.fingerprint import file_hashes, fingerprint, read_standard_input, suffix_of_records
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
    "suffix_of_records",
]

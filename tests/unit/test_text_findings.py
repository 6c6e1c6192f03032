"""Test the sentences about a text: findings with their options, plurals, and skipped checks."""

from __future__ import annotations

from typing import Any

import pytest

from finetale.schema import TextReport
from finetale.text.findings import cleaned, not_looked_for, text_findings, text_notes

NONE: dict[str, Any] = {
    "duplicates": {"documents": 0, "examples": []},
    "near_duplicates": {"documents": 0, "examples": []},
    "overlap": {"documents": 0, "examples": []},
    "near_overlap": {"documents": 0, "examples": []},
    "personal_data": {"documents": 0, "counts": {}, "examples": []},
    "dropped": [],
    "cleaning": {},
}


@pytest.mark.parametrize(
    ("found", "sentences"),
    [
        ({}, []),
        (
            {"duplicates": {"documents": 1}, "near_duplicates": {"documents": 1_200}},
            [
                "1 document repeats another of its split exactly (--deduplicate exact leaves it out).",
                "1,200 documents nearly repeat another of their split (--deduplicate near leaves them out).",
            ],
        ),
        (
            {"overlap": {"documents": 1}, "near_overlap": {"documents": 2}},
            [
                "1 training document also occurs in the validation or test text, so the figures on it flatter the "
                "model (--drop-overlap exact leaves it out).",
                "2 documents are nearly the same in the training text and in the validation or test text, so the "
                "figures on it flatter the model (--drop-overlap near leaves them out).",
            ],
        ),
        (
            {"personal_data": {"documents": 1, "counts": {"email": 1, "key": 2}}},
            ["Personal data in 1 document: 1 e-mail address, 2 keys or passwords (--mask-personal-data masks it)."],
        ),
        (
            {"personal_data": {"documents": 3, "counts": {"phone": 4}}, "cleaning": {"masked_personal_data": 4}},
            ["Personal data in 3 documents: 4 telephone numbers, all masked."],
        ),
        (
            {"near_duplicates": {"documents": 2, "dropped": 2}},
            ["2 documents nearly repeat another of their split, and were left out."],
        ),
    ],
)
def test_findings_in_words(found: dict[str, Any], sentences: list[str]) -> None:
    findings = text_findings(NONE | found)
    assert [finding.sentence() for finding in findings] == sentences
    if any(finding.matters for finding in findings):
        assert set(found) & {"overlap", "near_overlap", "personal_data"}


def test_places_of_repeats_name_the_repeated_text() -> None:
    example = {"source": "a.txt", "line": 3, "first_seen": "b.txt:9", "similarity": 0.8}
    found = text_findings(NONE | {"near_duplicates": {"documents": 1, "examples": [example]}})
    assert found[0].places == ("a.txt:3 (b.txt:9)",)


@pytest.mark.parametrize(
    ("unit", "also_occur"), [("words", "also occur word for word"), ("characters", "also occur"), ("tokens", None)]
)
def test_shared_passages_are_counted_in_words_or_characters(unit: str, also_occur: str | None) -> None:
    shared = {"unit": unit, "window": 20, "test": {"words": 100, "shared": 2}}
    assert [finding.sentence() for finding in text_findings(NONE | {"shared_passages": shared})] == [
        f"2.0% of the {unit} of the test text {also_occur} in the training text, in passages of 20 {unit} or more, so "
        "the figures on it flatter the model (--test FILE holds out text of your own choice)."
    ] * (also_occur is not None)


def test_cleaning_is_a_sentence() -> None:
    empty = TextReport.model_validate(NONE | {"sources": []})
    counts = {"newlines": 1_200, "stripped_characters": 1, "unusual_spaces": 2, "mojibake": 0, "odd_things": 1}
    assert cleaned(empty.model_copy(update={"cleaning": counts})) == (
        "1,200 line ends of Windows or old Macs converted; "
        "1 character of white space at the ends of documents removed; "
        "2 unusual line ends or page breaks converted; 1 odd things cleaned"
    )
    assert cleaned(empty) == ""


def test_skipped_checks_are_not_reported_as_zero() -> None:
    assert not not_looked_for(NONE)
    assert not_looked_for(NONE | {"personal_data": None}) == "Personal data was not looked for."
    everything = NONE | {"personal_data": None, "near_duplicates": None}
    assert not_looked_for(everything) == "Near repeats and personal data were not looked for."
    some = NONE | {"near_duplicates": {"documents": 0, "examples": [], "compared_with": 1_000_000}}
    assert not_looked_for(some) == "Near repeats were looked for among the first 1,000,000 documents only."


@pytest.mark.parametrize("text", [None, {}, [], "text", {"duplicates": 3, "personal_data": {"counts": {"odd": "x"}}}])
def test_an_incomplete_report_is_accepted(text: Any) -> None:
    text_findings(text)
    not_looked_for(text)


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("picture", "2 pictures"),
        ("table of contents", "2 tables of contents"),
        ("passage around the article", "2 passages around the article"),
        ("page outside of the reading order", "2 pages outside of the reading order"),
        ("mail without words of its writer", "2 mails without words of its writer"),
        ("time within a cue", "2 times within a cue"),
    ],
)
def test_the_noun_gets_the_plural(what: str, named: str) -> None:
    file = {"file": "a.html", "kind": "html", "bytes": 1, "documents": 1, "characters": 1, "problems": {}}
    report = NONE | {"content_left_out": {what: 2}, "files": [file | {"left_out": {what: 2}}]}
    assert [(note.what, note.places) for note in text_notes(report)] == [(f"Left out of a.html: {named}", ())]

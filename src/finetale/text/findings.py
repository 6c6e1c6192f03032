"""Turn the data report into sentences for terminal, page and card: sources, repeats, leaks, personal data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import PurePath
from typing import Any

from pydantic import ValidationError

from finetale.formatting import count, plural, share
from finetale.schema import ColumnReport, PersonalExample, RepeatExample, Repeats, TextReport
from finetale.text.assistant_exports import CHATGPT, CLAUDE
from finetale.text.chats import SILENCE_HOURS
from finetale.text.formats.refused import REFUSED
from finetale.text.formats.whatsapp import FORM as WHATSAPP
from finetale.text.source_names import LIST_OF_TEXTS

Report = TextReport | Mapping[str, Any] | None
"""A data report: the model of the schema, or the dictionary that the token store keeps."""

_KINDS = {
    "email": ("e-mail address", "e-mail addresses"),
    "phone": ("telephone number", "telephone numbers"),
    "card": ("card number", "card numbers"),
    "iban": ("bank account", "bank accounts"),
    "key": ("key or password", "keys or passwords"),
}
_REPEATS = (
    ("duplicates", "{} documents repeat another of their split exactly", "--deduplicate exact", False),
    ("near_duplicates", "{} documents nearly repeat another of their split", "--deduplicate near", False),
    ("overlap", "{} training documents also occur in the validation or test text", "--drop-overlap exact", True),
    (
        "near_overlap",
        "{} documents are nearly the same in the training text and in the validation or test text",
        "--drop-overlap near",
        True,
    ),
)


_FORMS = ("duplicate_key", "records_in_list", "no_header", "pages_without_text", "damaged_pages", "wrong_suffix")
_LOSSES = ("duplicate_key", "pages_without_text", "damaged_pages")
_CLEANED = {
    "newlines": ("line end", "of Windows or old Macs converted"),
    "stripped_characters": ("character", "of white space at the ends of documents removed"),
    "blank_pieces": ("blank document", "left out"),
    "control_characters": ("control character", "removed"),
    "unusual_spaces": ("unusual line end or page break", "converted"),
    "mojibake": ("document", "repaired that was once decoded in a wrong encoding"),
    "masked_personal_data": ("item", "of personal data masked"),
}
"""Noun, and what was done, by the kind of cleaning."""
_MAX_COLUMNS = 5
_MAX_KINDS = 5
_MAX_PLACES = 10
_NAMED_IN_LINE = 5

SHARED_SHARE = 0.005
"""Minimum share of held-out text that must also be in the training text to be reported."""


@dataclass(frozen=True)
class TextFinding:
    """A fact about a text that its user should know.

    Attributes:
        what: a sentence without its full stop.
        remedy: the option that changes the fact. Empty if there is none, or it was given.
        effect: what the option does.
        matters: whether to warn: figures may be too good, or text may be missing or leak.
        places: the first places, as file:line; or names of people.
    """

    what: str
    remedy: str
    effect: str
    matters: bool
    places: tuple[str, ...]

    def sentence(self) -> str:
        """Return the sentence with its remedy, for the command line."""
        return f"{self.what}{f' ({self.remedy} {self.effect})' if self.remedy else ''}."

    def line(self) -> str:
        """Return the sentence with the names of the first places, for a terminal that shows no list."""
        names = ", ".join(PurePath(place).name for place in self.places[:_NAMED_IN_LINE])
        more = ", …" if len(self.places) > _NAMED_IN_LINE else ""
        return f"{self.sentence().removesuffix('.')}: {names}{more}." if names else self.sentence()


def text_findings(text: Report) -> list[TextFinding]:
    """Return the findings of a data report (`text` of data.json) on repeats, leaks and personal data."""
    report = _as_record(text)
    if report is None:
        return []
    return [*_repeat_findings(report), *_shared_findings(report), *personal_findings(report)]


def _repeat_findings(report: TextReport) -> Iterator[TextFinding]:
    for key, form, remedy, matters in _REPEATS:
        repeats: Repeats | None = getattr(report, key)
        if repeats is None or not repeats.documents:
            continue
        what = form.format(count(repeats.documents))
        if repeats.documents == 1:
            what = _in_the_singular(what)
        gone = repeats.dropped >= repeats.documents
        yield TextFinding(
            f"{what}{', and were left out' if gone else ''}"
            + ("" if gone or not matters else ", so the figures on it flatter the model"),
            "" if gone else remedy,
            _effect(repeats.documents),
            matters and not gone,
            _places(repeats.examples),
        )


def _shared_findings(report: TextReport) -> Iterator[TextFinding]:
    passages = report.shared_passages
    if passages is None:
        return
    unit = passages.unit
    key = "tokens" if unit == "tokens" else "words"  # older versions counted tokens
    exactly = "" if unit == "characters" else " word for word"
    watched = passages.watched
    if watched is not None and watched.words and (watched.shared or 0) / watched.words >= SHARED_SHARE:
        yield TextFinding(
            f"{share((watched.shared or 0) / watched.words)} of the {unit} of the watched text also occur{exactly} "
            f"in the training text, in passages of {count(passages.window)} {unit} or more, so the figures on it hide "
            "what the model forgets",
            "--watch FILE",
            "watches other text",
            True,
            (),
        )
    for split, part in (("validation", passages.validation), ("test", passages.test)):
        total = None if part is None else getattr(part, key)
        if part is None or not total or (part.shared or 0) / total < SHARED_SHARE:
            continue
        yield TextFinding(
            f"{share((part.shared or 0) / total)} of the {unit} of the {split} text also occur{exactly} in the "
            f"training text, in passages of {count(passages.window)} {unit} or more, so the figures on it flatter the "
            "model",
            f"--{split} FILE",
            "holds out text of your own choice",
            True,
            (),
        )


def personal_findings(report: TextReport) -> Iterator[TextFinding]:
    """Yield a finding for the personal data in the text, if there is any. It matters unless it was masked."""
    personal = report.personal_data
    if personal is None or not personal.counts:
        return
    named = [
        f"{count(number)} {_KINDS.get(kind, (kind, kind))[number != 1]}" for kind, number in personal.counts.items()
    ]
    masked = bool(report.cleaning.get("masked_personal_data"))
    what = f"Personal data in {plural(personal.documents, 'document')}: {', '.join(named)}"
    yield TextFinding(
        f"{what}{', all masked' if masked else ''}",
        "" if masked else "--mask-personal-data",
        "masks it",
        not masked,
        _places(personal.examples),
    )


def _as_record(text: Report) -> TextReport | None:
    """Return a data report as a model of the schema. None if there is no report, or it is invalid."""
    if text is None or isinstance(text, TextReport):
        return text
    if not isinstance(text, Mapping) or not text:
        return None
    try:
        return TextReport.model_validate({"sources": [], **text})
    except ValidationError:
        return None


def text_notes(text: Report, *, forms: bool = True) -> list[TextFinding]:
    """Return sentences on the columns and files that the text came from, and on what was left out.

    Args:
        text: a data report (`text` of data.json).
        forms: include notes on the form of the files, which `problems` lists too.
    """
    report = _as_record(text)
    if report is None:
        return []
    columns = [column for column in report.columns if column.source != LIST_OF_TEXTS]  # which has no columns
    notes = [_column_note(column) for column in columns[:_MAX_COLUMNS]]
    if (more := len(columns) - _MAX_COLUMNS) > 0:
        notes.append(_note(f"Columns of {plural(more, 'more source')} are in data.json"))
    notes += [
        *mixed_notes(report),
        *_chat_notes(report),
        *_example_notes(report),
        *_files_left_out(report),
        *_content_left_out(report),
    ]
    return [*notes, *(_problem_notes(report) if forms else [])]


def _chat_notes(report: TextReport) -> list[TextFinding]:
    """Return notes on the chats that were recognised, and on the people who write in them.

    Names of people are places, because a model card, which is published, shows no places.
    """
    chats = report.chats
    if chats is None:
        return []
    notes = []
    for form, number in chats.forms.items():
        if form in (CHATGPT, CLAUDE):
            notes.append(_note(f"Recognised {plural(number, 'conversation')} with {form}"))
            continue
        escape = ("--documents file", "reads it as plain text" if number == 1 else "reads them as plain text")
        what = f"Recognised {plural(number, f'chat of {form}', f'chats of {form}')}"
        notes.append(TextFinding(what, *(escape if form == WHATSAPP else ("", "")), False, ()))
    if not chats.conversations:
        return notes
    people = plural(chats.people, "person writes", "people write")
    what = f"{people} in {plural(chats.conversations, 'conversation')}, cut at silences of {SILENCE_HOURS} hours"
    remedy = ("", "")
    if chats.speaker is None:
        remedy = ("--speaker NAME", "learns the messages of one person as answers")
    else:
        what += "; the messages of --speaker are the answers"
    names = tuple(f"{person.name} ({_percent(person.share)} of the messages)" for person in chats.speakers)
    return [*notes, TextFinding(what, *remedy, False, names)]


def mixed_notes(text: Report) -> Iterator[TextFinding]:
    """Yield a note on each source of mixed and of watched text."""
    report = _as_record(text)
    if report is None:
        return
    for mixed in report.mixed:
        name = _last_part(mixed.source)
        if mixed.tokens is None or mixed.of_tokens is None:
            yield _note(f"{_percent(mixed.share)} of the training tokens will be from {name}")
            continue
        got = mixed.tokens / max(1, mixed.of_tokens)
        what = f"Of the {count(mixed.of_tokens)} training tokens {count(mixed.tokens)} ({share(got)}) are from {name}"
        if mixed.is_short:
            what += f", which is all of its text and less than the {share(mixed.share)} of --mix"
        yield TextFinding(what, "", "", bool(mixed.is_short), ())
    for watched in report.watched:
        yield _note(
            f"{_last_part(watched.source)} is watched and not trained on ({plural(watched.documents, 'document')})"
        )


def _example_notes(report: TextReport) -> list[TextFinding]:
    """Return one note on examples and what is learned of them, or an empty list."""
    examples = report.examples
    if examples is None:
        return []
    what = f"{plural(examples.documents, 'example')} with {plural(examples.answers, 'answer')}"
    if examples.loss == "all":
        what += ": prompts and answers are learned"
        return [TextFinding(what, "--loss answers", "learns the answers only", False, ())]
    share_learned = examples.learned_characters / max(1, examples.learned_characters + examples.context_characters)
    which = "the last answer of each is learned" if examples.loss == "last" else "the answers are learned"
    what += f": {which} ({_percent(share_learned)} of the characters), the rest is read as context"
    return [TextFinding(what, "--loss all", "learns the prompts too", False, ())]


def _column_note(column: ColumnReport) -> TextFinding:
    kind = "template with" if column.template else "column"
    what = f"The text of {_last_part(column.source)} is the {kind} {column.taken!r}"
    if not column.left_out:
        return _note(f"{what}; no other column holds text")
    others = [f"{other.name!r} ({_percent(other.share)})" for other in column.left_out[:_MAX_COLUMNS]]
    if more := column.more_left_out + len(column.left_out[_MAX_COLUMNS:]):
        others.append(f"{more} more")
    what += f", with {_percent(column.share)} of the characters; left out: {_and(others)}"
    remedy = ("--text-column NAME", "takes another column") if column.guessed else ("", "")
    return TextFinding(what, *remedy, matters=column.guessed and column.share < 0.9, places=())


def _files_left_out(report: TextReport) -> list[TextFinding]:
    """Return one note on the files that were left out, or an empty list."""
    skipped = report.skipped
    others = sum(skipped.other.values())
    num_files = others + skipped.unreadable + skipped.empty + skipped.special
    parts = []
    if others:
        kinds = sorted(skipped.other.items(), key=lambda item: (-item[1], item[0]))
        ways = {suffix: REFUSED[suffix].way_out for suffix, _ in kinds[:_MAX_KINDS] if suffix in REFUSED}
        named = [
            f"{number:,} {suffix or '(no suffix)'}{f': {ways[suffix]}' if ways.get(suffix) else ''}"
            for suffix, number in kinds[:_MAX_KINDS]
        ]
        if more := sum(number for _, number in kinds[_MAX_KINDS:]):
            named.append(f"{more:,} more")
        parts.append(f"{others:,} of kinds that are not read ({('; ' if any(ways.values()) else ', ').join(named)})")
    if skipped.unreadable:
        parts.append(f"{skipped.unreadable:,} that can't be read")
    if skipped.empty:
        parts.append(f"{skipped.empty:,} without text")
    if skipped.special:
        one = skipped.special == 1
        parts.append(f"{skipped.special:,} that {'is not a regular file' if one else 'are not regular files'}")
    beside = []
    if skipped.linked_folders:
        beside.append(plural(skipped.linked_folders, "linked folder"))
    if skipped.run_directories:
        beside.append(plural(skipped.run_directories, "run directory", "run directories"))
    if skipped.hidden:
        beside.append(plural(skipped.hidden, "hidden file or folder", "hidden files or folders"))
    if not parts and not beside:
        return []
    read = len(report.files) + report.more_files if report.files_read is None else report.files_read
    what = f"Read {read:,} of {plural(read + num_files, 'file')}"
    if parts:
        what += f"; left out: {_and(parts)}"
    if beside:
        what += f"; not entered or read: {_and(beside)}"
    order = ("unreadable", "special", "other", "empty", "linked_folders", "run_directories", "hidden")
    # The first name of each kind, then the second of each, so that a short list names files of every kind.
    by_turns = zip_longest(*(report.skipped_names.get(kind, ()) for kind in order))
    names = tuple(name for turn in by_turns for name in turn if name is not None)
    return [TextFinding(what, "", "", bool(skipped.unreadable), names)]


def _content_left_out(report: TextReport) -> list[TextFinding]:
    """Return one note on content of the files that is not text, such as pictures, or an empty list."""
    if not report.content_left_out:
        return []
    named = [plural(number, what, _plural_of(what)) for what, number in report.content_left_out.items()]
    files = [file for file in report.files if file.left_out]
    if len(files) == 1 and not report.more_files:
        return [TextFinding(f"Left out of {_last_part(files[0].file)}: {_and(named)}", "", "", False, ())]
    places = tuple(file.file for file in files[:_MAX_PLACES])
    return [TextFinding(f"Left out of the files: {_and(named)}", "", "", False, places)]


def cleaned(report: TextReport) -> str:
    """Return what cleaning changed, as phrases with semicolons between them. Empty if nothing."""
    phrases = []
    for name, number in report.cleaning.items():
        noun, done = _CLEANED.get(name, (name.replace("_", " "), "cleaned"))
        plural_noun = "unusual line ends or page breaks" if name == "unusual_spaces" else ""
        if number:
            phrases.append(f"{plural(number, noun, plural_noun)} {done}")
    return "; ".join(phrases)


def _plural_of(what: str) -> str:
    """Return the plural of a noun that words such as "in another branch" may follow."""
    match = re.search(" (?:in|after|around|before|of|outside|that|within|without) ", what)
    end = match.start() if match else len(what)
    return f"{what[:end]}s{what[end:]}"


def _problem_notes(report: TextReport) -> list[TextFinding]:
    """Return notes on the form of the files: one per kind of problem, with the detail of its first file."""
    notes = []
    for kind in _FORMS:
        found = [problem for problem in report.problems if problem.kind == kind]
        if found:
            first = found[0]
            more = f" (and so in {plural(len(found) - 1, 'more file')})" if len(found) > 1 else ""
            what = f"In {_last_part(first.file)}, {first.detail}{more}"
            places = tuple(
                problem.file if problem.line is None else f"{problem.file}:{problem.line}"
                for problem in found[:_MAX_PLACES]
            )
            notes.append(TextFinding(what, "", "", kind in _LOSSES, places))
    return notes


def _note(what: str) -> TextFinding:
    return TextFinding(what, "", "", matters=False, places=())


def _last_part(name: str) -> str:
    """Return a name without the folders of an absolute path, because folders are private and a card is published."""
    return PurePath(name).name or name if PurePath(name).is_absolute() else name


def _percent(share: float) -> str:
    return "under 1%" if 0 < share < 0.005 else f"{share:.0%}"


def _and(items: list[str]) -> str:
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else items[0]


def not_looked_for(text: Report) -> str:
    """Return a sentence on the searches that were not made. Empty if all were made."""
    report = _as_record(text)
    if report is None:
        return ""
    near = report.near_duplicates
    if near is not None and near.not_compared_with_all:
        return (
            f"{count(near.not_compared_with_all)} documents are in part like so many others that they were not "
            "compared with all of them."
        )
    if near is not None and near.compared_with:
        return f"Near repeats were looked for among the first {count(near.compared_with)} documents only."
    if near is None and report.personal_data is None:
        return "Near repeats and personal data were not looked for."
    if near is None:
        return "Near repeats were not looked for."
    return "Personal data was not looked for." if report.personal_data is None else ""


def _effect(documents: int) -> str:
    return "leaves it out" if documents == 1 else "leaves them out"


def _in_the_singular(what: str) -> str:
    for many, one in (
        (" documents", " document"),
        (" repeat ", " repeats "),
        (" occur ", " occurs "),
        (" are ", " is "),
        (" their ", " its "),
    ):
        what = what.replace(many, one)
    return what


def _places(examples: Sequence[RepeatExample | PersonalExample]) -> tuple[str, ...]:
    """Return the first places, each with the earlier place that it repeats or its kind of personal data."""
    places = []
    for example in examples:
        of = example.kind if isinstance(example, PersonalExample) else example.first_seen or example.also_in
        places.append(f"{example.source}:{example.line}{f' ({of})' if of else ''}")
    return tuple(places)

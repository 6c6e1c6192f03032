"""Fill the data report: counts per file, problems with their lines, sizes of the splits.

Knows nothing of files, encodings or splitting rules. The modules that read text report here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finetale.text.documents import SPLITS, Document, FileError, Part, Split, one_line
from finetale.text.languages import LanguageSample
from finetale.text.personal import KINDS, Finding
from finetale.text.source_names import source_name

if TYPE_CHECKING:
    from finetale.text.columns import ColumnAccount
    from finetale.text.conversations import Rendered
    from finetale.text.repeats import Earlier
    from finetale.text.splits import Candidate

MAX_FILES = 1000
MAX_PROBLEMS = 200
MAX_EXAMPLES = 20
MAX_LINES = 5
MAX_NAMES = 10
LEFT_OUT = ("hidden", "linked_folders", "run_directories", "held_out_files", "special", "unreadable", "empty", "other")
"""Kinds of files and folders that are not read."""


@dataclass(slots=True)
class Problem:
    """One kind of problem in one file: its count, and the first lines where it was found."""

    file: str
    kind: str
    count: int = 0
    lines: list[int] = field(default_factory=list)
    detail: str = ""
    fatal: bool = False
    hint: str = ""

    def to_dict(self) -> dict[str, Any]:
        lines = ", ".join(map(str, self.lines)) + (", …" if len(self.lines) == MAX_LINES else "")
        where = f"lines {lines}" if len(self.lines) > 1 else ""
        return {
            "file": self.file,
            "line": self.lines[0] if self.lines else None,
            "kind": self.kind,
            "count": self.count,
            "detail": "; ".join(filter(None, (self.detail, where))),
            "fatal": self.fatal,
            "hint": self.hint,
        }


@dataclass(slots=True)
class ChatAccount:
    """Counts of chats, shared by all files.

    Attributes:
        forms: number of chats of each kind, such as "WhatsApp"; of "ChatGPT" and "Claude" the conversations.
        conversations: number of conversations that the chats between people were cut into.
        speakers: number of messages of each person in chats between people.
    """

    forms: Counter[str] = field(default_factory=Counter)
    conversations: int = 0
    speakers: Counter[str] = field(default_factory=Counter)

    def to_dict(self, speaker: str | None) -> dict[str, Any] | None:
        """Return the counts as JSON-able data. None if there are no chats. `speaker` is the setting."""
        if not self.forms:
            return None
        total = max(1, self.speakers.total())
        return {
            "forms": dict(self.forms.most_common()),
            "conversations": self.conversations,
            "people": len(self.speakers),
            "speakers": [
                {"name": one_line(name), "messages": messages, "share": round(messages / total, 6)}
                for name, messages in self.speakers.most_common(MAX_EXAMPLES)
            ],
            "speaker": speaker,
        }


class FileAccount:
    """Counts of one file, or one split of a dataset, filled while it is read."""

    def __init__(self, file: str, kind: str, cleaning: Counter[str], chats: ChatAccount | None = None) -> None:
        self.file = file
        self.kind = kind
        self.cleaning = cleaning  # shared by all files
        self.chats = chats or ChatAccount()
        self.encoding: str | None = None
        self.text_column: str | None = None
        self.bytes = 0
        self.documents = 0
        self.characters = 0
        self.skipped = False  # left out because it could not be read
        self.left_out: Counter[str] = Counter()
        self.problems: dict[str, Problem] = {}

    def problem(
        self, kind: str, line: int | None, count: int = 1, detail: str = "", *, fatal: bool = False, hint: str = ""
    ) -> None:
        """Count a problem. Lines must come in ascending order."""
        entry = self.problems.setdefault(kind, Problem(self.file, kind))
        entry.count += count
        entry.detail = detail or entry.detail
        entry.fatal = entry.fatal or fatal
        entry.hint = hint or entry.hint
        if line is not None and len(entry.lines) < MAX_LINES and line not in entry.lines:
            entry.lines.append(line)

    def leave_out(self, what: str, count: int = 1) -> None:
        """Count content that is not text or does not belong to it, such as "picture". `what` is a singular noun."""
        if count:
            self.left_out[what] += count

    def settle(self) -> None:
        """Separate U+FFFD that the file held from those that replaced undecodable bytes."""
        replaced = self.problems["undecodable"].count if "undecodable" in self.problems else 0
        found = self.problems.get("replacement_character")
        if replaced and found is not None:
            found.count -= replaced
            found.detail = "apart from those that replace undecodable bytes; the lines list both"
            if found.count <= 0:
                del self.problems["replacement_character"]

    def to_dict(self) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "file": self.file,
            "kind": self.kind,
            "encoding": self.encoding,
            "bytes": self.bytes,
            "documents": self.documents,
            "characters": self.characters,
            "problems": {kind: problem.count for kind, problem in self.problems.items()},
        }
        if self.text_column:
            entry["text_column"] = self.text_column
        if self.left_out:
            entry["left_out"] = dict(sorted(self.left_out.items()))
        return entry


@dataclass(slots=True)
class RepeatAccount:
    """Counts documents that repeat an earlier one, and lists the first of them."""

    key: str
    documents: int = 0
    dropped: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def count(self, document: Document, earlier: Earlier, *, dropped: bool) -> None:
        """Count a document that repeats an earlier one."""
        self.documents += 1
        self.dropped += dropped
        if len(self.examples) < MAX_EXAMPLES:
            example = {"source": document.source, "line": document.line, self.key: earlier.place}
            self.examples.append(
                example if earlier.similarity == 1 else example | {"similarity": round(earlier.similarity, 2)}
            )

    def to_dict(self) -> dict[str, Any]:
        return {"documents": self.documents, "dropped": self.dropped, "examples": self.examples}


@dataclass(slots=True)
class BesideAccount:
    """The size of a source of mixed or watched text.

    Attributes:
        source: its name for the report.
        number: its number, from 0, among the sources of `mix` or `watch`.
        share: its share of the training tokens; None for watched text.
    """

    source: str
    number: int
    share: float | None = None
    documents: int = 0
    characters: int = 0

    def to_dict(self) -> dict[str, Any]:
        counts = {"source": self.source, "documents": self.documents, "characters": self.characters}
        return counts if self.share is None else counts | {"share": self.share}


@dataclass(slots=True)
class SplitAccount:
    """The size of one split."""

    documents: int = 0
    characters: int = 0
    words: int = 0
    bytes: int = 0


class TextReport:
    """The data report. It fills while the parts are iterated, and is complete at the end of the iteration."""

    def __init__(self, sources: list[str]) -> None:
        self.sources = [source_name(source) for source in sources]
        self.split_rule = ""
        self.dataset_splits: list[str] = []
        self.columns: list[ColumnAccount] = []
        self._left_out: Counter[str] = Counter()
        self._left_out_names: dict[str, list[str]] = {kind: [] for kind in LEFT_OUT}
        self._other_suffixes: Counter[str] = Counter()
        self.documents = 0
        self.characters = 0
        self.words = 0
        self.duplicates = RepeatAccount("first_seen")
        self.near_duplicates = RepeatAccount("first_seen")
        self.overlap = RepeatAccount("also_in")
        self.near_overlap = RepeatAccount("also_in")
        self.cleaning: Counter[str] = Counter()
        self.content_left_out: Counter[str] = Counter()
        self._files: list[FileAccount] = []
        self._num_files = 0
        self._num_files_read = 0
        self._problems: list[Problem] = []
        self._num_problems = 0
        self._has_fatal = False
        self._histogram: Counter[int] = Counter()
        self.near_limit: int | None = None  # number of documents that later ones were compared with, if not all
        self.crowded = 0  # documents that were compared with some of those with similar parts, not with all
        self._looks_near = False
        self._looks_for_personal_data = False
        self._personal_data: Counter[str] = Counter()
        self._personal_documents = 0
        self._personal_examples: list[dict[str, Any]] = []
        self._splits: dict[Split, SplitAccount] = {split: SplitAccount() for split in SPLITS}
        self._dropped: dict[str, list[int]] = {}
        self._languages = LanguageSample()
        self.loss: str | None = None
        self.speaker: str | None = None
        self.chats = ChatAccount()
        self._examples = Counter[str]()
        self.mixed: list[BesideAccount] = []
        self.watched: list[BesideAccount] = []

    @property
    def has_fatal_problems(self) -> bool:
        """Whether a file, or the rest of one, could not be read."""
        return self._has_fatal

    def open_file(self, file: str, kind: str) -> FileAccount:
        """Start the account of one file."""
        account = FileAccount(file, kind, self.cleaning, self.chats)
        self._num_files += 1
        if len(self._files) < MAX_FILES:
            self._files.append(account)
        return account

    def leave_out(self, kind: str, name: str, suffix: str = "") -> None:
        """Count a file or folder that is not read. `kind` is one of LEFT_OUT; `suffix` is for files of other kinds."""
        self._left_out[kind] += 1
        if kind == "other":
            self._other_suffixes[suffix] += 1
        if len(names := self._left_out_names[kind]) < MAX_NAMES:
            names.append(name)

    def close_file(self, account: FileAccount) -> None:
        """Add the problems of a file that has been read. A file without documents counts as empty."""
        account.settle()
        failed = account.skipped or any(problem.fatal for problem in account.problems.values())
        if account.documents:
            self._num_files_read += 1
        elif not failed:
            self.leave_out("empty", account.file)
        self.content_left_out += account.left_out
        for problem in account.problems.values():
            self._add_problem(problem)

    def fatal(self, error: FileError) -> None:
        """Record an error of a source that has no file account."""
        lines = [] if error.line is None else [error.line]
        self._add_problem(Problem(error.file, error.kind, 1, lines, error.detail, True, error.hint))

    def _add_problem(self, problem: Problem) -> None:
        self._num_problems += 1
        self._has_fatal = self._has_fatal or problem.fatal
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(problem)

    def count_documents(self, texts: Sequence[str], digests: Sequence[bytes], words: int) -> None:
        """Count documents that were read, whether used or not. `words` is the number of their words in all."""
        lengths = list(map(len, texts))
        self.documents += len(texts)
        self.characters += sum(lengths)
        self.words += words
        self._histogram.update(map(int.bit_length, lengths))
        self._languages.offer_all(digests, texts)

    def count_example(self, rendered: Rendered, *, by_template: bool = False) -> None:
        """Count an example, whether used or not. `by_template`: the setting `template` made it, not a chat template."""
        context = sum(stop - start for start, stop in rendered.context)
        self._examples.update(
            documents=1,
            by_template=int(by_template),
            answers=rendered.answers,
            context_characters=context,
            learned_characters=len(rendered.text) - context if rendered.answers else 0,
        )

    def looked_for(self, *, near: bool, personal_data: bool) -> None:
        """Record which searches were made. For the others, the report has null, not zero."""
        self._looks_near, self._looks_for_personal_data = near, personal_data

    def count_personal_data(self, document: Document, findings: Sequence[Finding], *, records: bool) -> None:
        """Count personal data by kind. The report lists its places, never the data."""
        self._personal_documents += 1
        for finding in findings:
            self._personal_data[finding.kind] += 1
            if len(self._personal_examples) < MAX_EXAMPLES:
                line = document.line + (0 if records else document.text.count("\n", 0, finding.start))
                self._personal_examples.append({"source": document.source, "line": line, "kind": finding.kind})

    def count_part(self, part: Part, words: int, size: int) -> None:
        """Count a part: in its split if it is used, else under the reason why it was dropped.

        Mixed and watched text has separate accounts.
        """
        if part.dropped is not None:
            entry = self._dropped.setdefault(part.dropped, [0, 0])
            entry[0] += 1
            entry[1] += len(part.text)
            return
        if part.beside is not None:
            return
        split = self._splits[part.split]
        split.documents += 1
        split.characters += len(part.text)
        split.words += words
        split.bytes += size

    def count_whole(self, documents: Sequence[Candidate]) -> None:
        """Count documents that are used and not cut."""
        for name, split in self._splits.items():
            here = [each for each in documents if each.split == name and each.beside is None]
            split.documents += len(here)
            split.characters += sum([len(each.text) for each in here])
            split.words += sum([each.num_words for each in here])
            split.bytes += sum([each.num_bytes for each in here])

    def kept(self, split: Split) -> int:
        """Return the number of documents that have text in a split."""
        return self._splits[split].documents

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-able data. Its keys are stable; more may be added."""
        return {
            "sources": self.sources,
            "files": [account.to_dict() for account in self._files],
            "more_files": self._num_files - len(self._files),
            "files_read": self._num_files_read,
            "skipped": {
                **{kind: self._left_out[kind] for kind in LEFT_OUT if kind != "other"},
                "dataset_splits": self.dataset_splits,
                "other": dict(sorted(self._other_suffixes.items())),
            },
            "skipped_names": {kind: sorted(names) for kind, names in self._left_out_names.items() if names},
            "columns": [account.to_dict() for account in self.columns],
            "documents": self.documents,
            "characters": self.characters,
            "words": self.words,
            "length_histogram": [
                {"from": 1 << bits - 1 if bits else 0, "to": (1 << bits) - 1, "documents": count}
                for bits, count in sorted(self._histogram.items())
            ],
            "languages": self._languages.to_list(),
            "duplicates": self.duplicates.to_dict(),
            "near_duplicates": self.near_duplicates.to_dict()
            | ({"compared_with": self.near_limit} if self.near_limit else {})
            | ({"not_compared_with_all": self.crowded} if self.crowded else {})
            if self._looks_near
            else None,
            "overlap": self.overlap.to_dict(),
            "near_overlap": self.near_overlap.to_dict() if self._looks_near else None,
            "personal_data": {
                "documents": self._personal_documents,
                "counts": {kind: self._personal_data[kind] for kind in KINDS if self._personal_data[kind]},
                "examples": self._personal_examples,
            }
            if self._looks_for_personal_data
            else None,
            "splits": {
                split: {
                    "documents": entry.documents,
                    "characters": entry.characters,
                    "words": entry.words,
                    "bytes": entry.bytes,
                }
                for split, entry in self._splits.items()
            },
            "cleaning": dict(sorted(self.cleaning.items())),
            "content_left_out": dict(self.content_left_out.most_common()),
            "problems": [problem.to_dict() for problem in self._problems],
            "more_problems": self._num_problems - len(self._problems),
            "dropped": [
                {"reason": reason, "documents": documents, "characters": characters}
                for reason, (documents, characters) in sorted(self._dropped.items())
            ],
            "split_rule": self.split_rule,
            "chats": self.chats.to_dict(self.speaker),
            "examples": dict(self._examples) | {"loss": self.loss} if self._examples else None,
            "mixed": [account.to_dict() for account in self.mixed],
            "watched": [account.to_dict() for account in self.watched],
        }

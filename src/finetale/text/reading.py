"""Lead text through the layer: sources → inputs → documents → parts in splits. Fills the data report on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Literal, TypeVar

from finetale.config import DEFAULT_FRACTION, TextSettings
from finetale.errors import SourceError
from finetale.text.account import BesideAccount, FileAccount, TextReport
from finetale.text.byte_streams import STANDARD_INPUT
from finetale.text.chats import unknown_speaker
from finetale.text.cleaning import Cleaner
from finetale.text.columns import Raw, SourceColumns, record_documents
from finetale.text.conversations import Conversation, Rendered, Renderer, UnusableExample, characters_of, joined_text
from finetale.text.decoding import check_encoding
from finetale.text.documents import SPLITS, FileError, Part, Split, digest_and_size, digest_of, one_line, size_in_utf8
from finetale.text.formats import SourceFile, format_named
from finetale.text.formats.whatsapp import FORM, is_whatsapp
from finetale.text.hub import PREFIX, find_splits
from finetale.text.personal import find_personal_data, mask, may_have_personal_data
from finetale.text.plain import chapter_documents, plain_documents
from finetale.text.repeats import DUPLICATE, NEAR_DUPLICATE, NEAR_OVERLAP, OVERLAP, Found, Repeats
from finetale.text.source_names import source_name
from finetale.text.sources import Input, Search, find_inputs
from finetale.text.splits import Candidate, Splitter, cut_evenly
from finetale.text.templates import filled_texts
from finetale.text.words import count_words

HELD_OUT: tuple[Split, ...] = ("test", "validation")  # read before the training text, to detect overlap
Role = Literal["test", "validation", "watched", "mixed", "train"]
ROLES: tuple[Role, ...] = ("test", "validation", "watched", "mixed", "train")
"""Uses of sources, in the order in which their files are found. A folder leaves out files of earlier uses."""
Plan = dict[Role, list[Input]]
T = TypeVar("T")
_CHUNK_CHARACTERS = 1_000_000
_CHUNK_ITEMS = 1_000
PASSAGE_CHARACTERS = 4_000
"""Length of the passages that mixed text is cut into, so that a share of one long document comes from all of it."""
MAX_NAMED = 10
"""Maximum number of unreadable files that one message names."""


def read_parts(
    sources: Sequence[str],
    settings: TextSettings,
    *,
    on_problem: Literal["raise", "collect"] = "raise",
    offline: bool = False,
    renderer: Renderer | None = None,
) -> tuple[Iterator[Part], TextReport]:
    """Read sources as parts of documents, each in its split.

    All sources are located before any is read. Explicit test and validation text comes first, then watched text, the
    training text, and mixed text last. All passages of mixed text are yielded; who counts tokens chooses among them.
    Memory holds one document at a time, the documents held back until no split is empty (64 MB at most), and the index
    of repeats. The index takes about 60 bytes per document. A search for near repeats takes 270 bytes more for each of
    the first million documents.

    Args:
        sources: files, folders, `-`, bundled:tales or hf:DATASET[/CONFIG][:SPLIT].
        settings: how to read, clean and split; `validation` and `test` name further sources.
        on_problem: "raise" stops at the first file that can't be read. "collect" records the problem as fatal in the
            report, leaves out the file, or the rest of it, and continues.
        offline: use no network for hf: sources.
        renderer: turns the messages of an example into text. It is required where a source holds examples.

    Returns:
        (parts, report). The report is complete when the parts have been iterated to the end.

    Raises:
        SourceError: a source is missing or can't be read, or there is no text.
        HubError: the hub can't be reached, or has no such dataset.
    """
    check_encoding(settings.encoding)
    if not sources:
        raise SourceError("No source of text was given.", "Name a file, a folder, -, bundled:tales or hf:DATASET.")
    names = [str(source) for source in sources]
    report = TextReport(names)
    reader = _Reader(settings, report, collect=on_problem == "collect", renderer=renderer)
    plan = reader.plan(names, offline=offline)
    return reader.parts(plan), report


def check_sources(sources: Sequence[str], settings: TextSettings) -> None:
    """Find all files and folders of the sources, without using the network. Only archives are opened.

    Raises:
        SourceError: a source is missing, unreadable, or holds nothing that can be read. The message names all of them.
    """
    local = {
        role: tuple(name for name in names if not name.startswith(PREFIX))
        for role, names in (("validation", settings.validation), ("test", settings.test), ("watch", settings.watch))
    }
    local["mix"] = tuple(name for name in settings.mix if not name.startswith(PREFIX))
    reader = _Reader(settings.model_copy(update=local), TextReport([]), collect=False)
    reader.plan([source for source in sources if not source.startswith(PREFIX)], offline=True)


class _Reader:
    def __init__(
        self, settings: TextSettings, report: TextReport, *, collect: bool, renderer: Renderer | None = None
    ) -> None:
        self._settings = settings
        self._template = settings.parsed_template
        self._renderer = renderer
        self._report = report
        self._collect = collect
        wanted = "near" in (settings.deduplicate, settings.drop_overlap)
        self._repeats = Repeats(near=settings.screen or wanted)
        self._finds_personal_data = settings.screen or settings.mask_personal_data
        self._columns: dict[str, SourceColumns] = {}
        self._taken: list[tuple[str, ...]] = []  # columns, in the order in which they were chosen
        report.loss = settings.loss
        report.speaker = settings.speaker
        report.looked_for(near=settings.screen or wanted, personal_data=self._finds_personal_data)

    # -- finding the files

    def plan(self, sources: Sequence[str], *, offline: bool) -> Plan:
        """Return the inputs of each split. Raise one error for all sources that can't be read."""
        plan: Plan = {role: [] for role in ROLES}
        errors: list[FileError] = []
        by_role: dict[Role, Sequence[str]] = {
            "test": self._settings.test,
            "validation": self._settings.validation,
            "watched": self._settings.watch,
            "mixed": [mix.source for mix in self._settings.mixes],
            "train": sources,
        }
        named = [source for role in by_role.values() for source in role]
        if named.count(STANDARD_INPUT) > 1:
            raise SourceError("Standard input (-) is named twice, but can be read once only.", "Give a file instead.")
        held_out: frozenset[Path] = frozenset()
        unreadable: list[FileError] = []
        for role, names in by_role.items():
            for number, source in enumerate(names):
                first = len(plan[role])
                try:
                    if source.startswith(PREFIX):
                        self._plan_dataset(source, role, plan, offline)
                    else:
                        left_out = held_out if role in ("mixed", "train") else frozenset()
                        plan[role] += find_inputs(source, Search(self._report, left_out, unreadable))
                except FileError as error:
                    errors.append(error)
                if role in ("watched", "mixed"):
                    account = self._open_beside(role, source, number)
                    plan[role][first:] = [replace(entry, beside=account) for entry in plan[role][first:]]
            held_out |= {entry.path.resolve() for entry in plan[role] if entry.path is not None}
        unreadable.sort(key=lambda error: error.file)
        if self._settings.skip_unreadable:
            for each in unreadable:
                self._report.leave_out("unreadable", each.file)
        else:
            errors += unreadable
        if self._collect:
            for each in errors:
                self._report.fatal(each)
        elif errors:
            raise _joined(errors)
        return plan

    def _open_beside(self, role: Role, source: str, number: int) -> BesideAccount:
        """Return a new account of mixed or watched text, which is in the report."""
        share = self._settings.mixes[number].share if role == "mixed" else None
        account = BesideAccount(source_name(source), number, share)
        (self._report.mixed if role == "mixed" else self._report.watched).append(account)
        return account

    def _plan_dataset(self, source: str, role: Role, plan: Plan, offline: bool) -> None:
        wanted: Split = "train" if role == "mixed" else role
        found, others = find_splits(source, wanted, streaming=self._settings.streaming, offline=offline)
        if role == "mixed":
            plan[role].append(found.pop(wanted))
            self._report.dataset_splits += [*others, *(entry.name for entry in found.values())]
            return
        for split, entry in found.items():
            given = {"validation": self._settings.validation, "test": self._settings.test}.get(split, ())
            if split != role and given:
                others.append(entry.name)  # text given by the user replaces a dataset's own split
            else:
                plan[split].append(entry)
        self._report.dataset_splits += others

    def _fractions(self, plan: Plan) -> tuple[float, float]:
        default = (
            0.0
            if plan["validation"] or plan["test"] or self._settings.validation or self._settings.test
            else DEFAULT_FRACTION
        )
        validation, test = self._settings.validation_fraction, self._settings.test_fraction
        return default if validation is None else validation, default if test is None else test

    # -- reading

    def parts(self, plan: Plan) -> Iterator[Part]:
        """Yield every part of every document of a plan."""
        validation, test = self._fractions(plan)
        given = [split for split in HELD_OUT if plan[split]]
        for split in given:
            yield from self._emit_all(_put_in(split, self._candidates(plan[split])))
            self._check_not_empty(split, plan[split])
        yield from self._watched_parts(plan["watched"])
        fates = []
        if validation or test:
            splitter = Splitter(validation, test, self._settings.long_document)
            yield from self._emit_all(splitter.place(self._candidates(plan["train"])))
            fates.append(splitter.rule)
        else:
            yield from self._emit_all(self._candidates(plan["train"]))
            fates.append("Every document of the training sources is trained on.")
        if given:
            names = " and ".join(reversed(given))
            fates.append(
                f"The {names} text comes from {'a separate source' if len(given) == 1 else 'separate sources'}."
            )
        yield from self._emit_all(self._candidates(plan["mixed"]))
        for account in (*self._report.watched, *self._report.mixed):
            if not account.documents and not self._report.has_fatal_problems:
                use = "watch" if account.share is None else "mix in"
                raise SourceError(f"There is no text to {use} in {account.source}.", "Name other text.")
        self._report.split_rule = " ".join(fates)
        self._check_speaker(self._report.sources)
        self._report.near_limit, self._report.crowded = self._repeats.limit, self._repeats.crowded
        self._check_not_empty("train", plan["train"])

    def _watched_parts(self, inputs: Sequence[Input]) -> Iterator[Part]:
        """Yield watched documents. They are in no split, so repeats in them are not looked for."""
        for chunk in self._candidates(inputs):
            for each in chunk:
                part = Part(each.text, each.source, each.line, "watched", each.digest.hex(), each.dropped)
                part.context, part.beside = each.context, each.beside
                if each.dropped is not None:
                    self._report.count_part(part, each.num_words, each.num_bytes)
                yield part

    def _candidates(self, inputs: Sequence[Input]) -> Iterator[list[Candidate]]:
        for entry, following in zip_longest(inputs, inputs[1:]):
            entry = self._with_chats(entry)
            account = self._report.open_file(entry.name, entry.format.name)
            if entry.notice:
                account.problem("wrong_suffix", None, detail=entry.notice)
            try:
                yield from self._documents(entry, account)
            except FileError as error:
                is_whole = entry.format.yields == "chapters" and error.line is None
                unread = error.kind == "unreadable" or ((error.kind == "binary" or is_whole) and not account.documents)
                if unread and self._settings.skip_unreadable:
                    account.skipped = True
                    self._report.leave_out("unreadable", error.file)
                elif self._collect:
                    account.problem(error.kind, error.line, detail=error.detail, fatal=True, hint=error.hint)
                else:
                    raise
            finally:
                self._report.close_file(account)
            if following is None or following.source != entry.source:
                self._judge_columns(entry)

    def _with_chats(self, entry: Input) -> Input:
        """Return the input in the format of WhatsApp if it is a text file that WhatsApp wrote, else unchanged."""
        settings = self._settings
        if entry.format.name != "text" or settings.documents != "auto" or settings.template is not None:
            return entry
        if entry.path is None and entry.open_member is None:  # standard input can be read once only
            return entry
        file = SourceFile(
            entry.name,
            FileAccount(entry.name, entry.format.name, Counter()),
            settings,
            path=entry.path,
            open_member=entry.open_member,
        )
        return replace(entry, format=format_named(FORM.lower())) if is_whatsapp(file) else entry

    def _check_speaker(self, sources: Sequence[str]) -> None:
        """Raise an error, or record it, if nobody in the chats has the name in the setting `speaker`."""
        speaker = self._settings.speaker
        if speaker is None or self._report.has_fatal_problems:
            return
        error = unknown_speaker(speaker, self._report.chats, ", ".join(sources))
        if error is not None and not self._collect:
            raise error
        if error is not None:
            self._report.fatal(error)

    def _judge_columns(self, last: Input) -> None:
        """Check, at the end of a source, that its chosen columns hold most of the text."""
        try:
            self._columns_of(last).judge()
        except FileError as error:
            if not self._collect:
                raise
            self._report.fatal(error)

    def _columns_of(self, entry: Input) -> SourceColumns:
        source = entry.source
        if source not in self._columns:
            wanted, pair = self._settings.text_column, (self._settings.prompt_column, self._settings.completion_column)
            self._columns[source] = SourceColumns(
                one_line(source), wanted, self._taken, self._report.columns, pair, self._template
            )
        return self._columns[source]

    def _documents(self, entry: Input, account: FileAccount) -> Iterator[list[Candidate]]:
        records = not entry.format.has_lines
        cleaner = Cleaner(account, self._settings, records=records)
        strip = self._settings.strip and not records
        for mixed in in_chunks(self._raw_documents(entry, account), _size_of_raw):
            chunk = [(line, raw) for line, raw in mixed if isinstance(raw, str)]
            if len(chunk) < len(mixed):
                yield [
                    self._read_example(entry, account, cleaner, raw, line)
                    if isinstance(raw, Conversation)
                    else self._read_candidates(entry, account, [cleaner.clean(raw, line)], [line])[0]
                    for line, raw in mixed
                ]
                continue
            mixed.clear()
            raws = [raw for _, raw in chunk]
            texts = cleaner.clean_all(raws)
            if texts is None:  # document by document, so that those before an error are yielded
                raws.clear()
                chunk.reverse()
                while chunk:
                    line, raw = chunk.pop()
                    where = _first_line(line, raw) if strip else line
                    raws.append(raw)
                    del raw  # so that memory holds a long document only once
                    yield self._read_candidates(entry, account, [cleaner.clean(raws.pop(), line)], [where])
            else:
                lines = [_first_line(line, raw) if strip and raw[:1].isspace() else line for line, raw in chunk]
                chunk.clear()
                del raws
                yield self._read_candidates(entry, account, texts, lines)

    def _read_candidates(
        self, entry: Input, account: FileAccount, texts: list[str], lines: list[int]
    ) -> list[Candidate]:
        """Return the candidates of clean texts, and count them. Empty the list of texts."""
        records, shortest, name = not entry.format.has_lines, self._settings.min_characters, entry.name
        found: list[Candidate] = []
        for text, line in zip(texts, lines, strict=True):
            digest, size = digest_and_size(text)  # before masking, because masking must not change a document's split
            found.append(Candidate(text, name, line, digest, count_words(text), size, records))
        if self._finds_personal_data and _is_learned(entry):
            for number in may_have_personal_data(texts):
                self._look_for_personal_data(found[number], account)
                texts[number] = found[number].text
        if entry.beside is not None:
            for each in found:
                each.beside = entry.beside.number
                if entry.beside.share is not None:
                    each.cuts = cut_evenly(each.text, PASSAGE_CHARACTERS, "train")
        lengths = list(map(len, texts))
        if min(lengths) < shortest:
            for each in found:
                if len(each.text) < shortest:
                    each.dropped = f"shorter than {shortest} characters" if each.text else "empty"
                    account.problem("left_out", each.line, detail=f"left out: {each.dropped}")
        account.documents += len(texts)
        account.characters += sum(lengths)
        if entry.beside is not None:
            entry.beside.documents += len(texts)
            entry.beside.characters += sum(lengths)
        else:
            digests, words = [each.digest for each in found], sum([each.num_words for each in found])
            self._report.count_documents(texts, digests, words)
        texts.clear()
        return found

    def _look_for_personal_data(self, document: Candidate, account: FileAccount) -> None:
        """Count the personal data of a document. Mask it, or record its places."""
        if not (findings := find_personal_data(document.text)):
            return
        self._report.count_personal_data(document, findings, records=document.is_record)
        if self._settings.mask_personal_data:
            account.cleaning["masked_personal_data"] += len(findings)
            document.text = mask(document.text, findings)
            document.num_words, document.num_bytes = count_words(document.text), size_in_utf8(document.text)
        else:
            document.personal = tuple((finding.start, finding.stop) for finding in findings)

    def _read_example(
        self, entry: Input, account: FileAccount, cleaner: Cleaner, example: Conversation, line: int
    ) -> Candidate:
        """Return the candidate of an example, and count it. Its messages are cleaned before they are rendered."""
        for message in example.messages:
            message.content = cleaner.clean(message.content, line, strip=not example.is_joined)
        # The template must not change an example's split.
        digest = digest_of("\x1e".join(f"{each.role}\x1f{each.content}" for each in example.messages).encode())
        if self._settings.mask_personal_data:
            for message in example.messages:
                content = Candidate(message.content, entry.name, line, digest, 0, 0, True)
                self._look_for_personal_data(content, account)
                message.content = content.text
        dropped = None
        try:
            if example.is_joined:
                rendered = joined_text(example.messages, self._settings.loss)
            else:
                assert self._renderer is not None
                rendered = self._renderer(example.messages)
        except UnusableExample as error:
            rendered, dropped = Rendered("\n\n".join(each.content for each in example.messages), (), 0), str(error)
            account.problem("left_out", line, detail=f"left out: {dropped}")
        text = rendered.text
        found = Candidate(
            text,
            entry.name,
            line,
            digest,
            count_words(text),
            size_in_utf8(text),
            True,
            dropped,
            context=rendered.context,
            is_example=True,
            beside=None if entry.beside is None else entry.beside.number,
        )
        if any(each.role == "system" for each in example.messages):
            found.own_text = "\n\n".join(each.content for each in example.messages if each.role != "system")
        if self._finds_personal_data and not self._settings.mask_personal_data and _is_learned(entry):
            self._look_for_personal_data(found, account)
        account.documents += 1
        account.characters += len(text)
        account.leave_out("message after the last answer", rendered.unanswered)
        for role in rendered.changed:
            account.leave_out(f"{role} message that the chat template changes or leaves out")
        if entry.beside is not None:
            entry.beside.documents += 1
            entry.beside.characters += len(text)
        else:
            self._report.count_documents([text], [digest], found.num_words)
            self._report.count_example(rendered, by_template=example.is_joined)
        return found

    def _raw_documents(self, entry: Input, account: FileAccount) -> Iterator[tuple[int, Raw]]:
        form, documents = entry.format, self._settings.documents
        file = SourceFile(
            entry.name,
            account,
            self._settings,
            path=entry.path,
            open_member=entry.open_member,
            columns=lambda: self._columns_of(entry),
            rows=entry.rows,
        )
        if form.yields == "records":
            return record_documents(form.read(file), file.columns, account)
        if form.yields == "documents" and (form.has_columns or self._template is None):
            return form.read(file)
        if form.yields == "chapters" and self._template is not None and documents in ("auto", "chapter"):
            return filled_texts(self._template, form.read(file), account.file)
        texts: Iterator[tuple[int, str]]
        if form.yields == "documents":
            texts = form.read(file)
        elif form.yields == "chapters":
            texts = chapter_documents(form.read(file), documents, account)
        else:
            texts = plain_documents(form.read(file), documents, account, strip=self._settings.strip)
        return texts if self._template is None else filled_texts(self._template, texts, account.file)

    # -- placing documents

    def _emit_all(self, placed: Iterator[list[Candidate]]) -> Iterator[Part]:
        for batch in evened(placed):
            may_repeat = self._repeats.prepare(batch)
            alone = [at for at, each in enumerate(batch) if may_repeat[at] or each.cuts or each.dropped is not None]
            start = 0
            for at in (*alone, len(batch)):
                if whole := batch[start:at]:
                    self._repeats.remember_new(whole, start)
                    self._report.count_whole(whole)
                    yield from [
                        Part(
                            each.text,
                            each.source,
                            each.line,
                            each.split,
                            each.digest.hex(),
                            None,
                            True,
                            each.personal,
                            context=each.context,
                            is_example=each.is_example,
                            beside=each.beside,
                        )
                        for each in whole
                    ]
                if at < len(batch):
                    yield from self._emit(batch[at], at, may_repeat=may_repeat[at])
                start = at + 1
            batch.clear()  # so that memory does not hold a long document while the next one is read
            whole.clear()

    def _emit(self, document: Candidate, at: int, *, may_repeat: bool) -> Iterator[Part]:
        """Yield the parts of the document at a position in the batch."""
        parts = document.parts
        dropped: dict[Split, str] = {}
        is_repeat = False
        if document.dropped is not None:
            dropped = dict.fromkeys(SPLITS, document.dropped)
        elif may_repeat:
            found = self._repeats.find(document, at)
            is_repeat = bool(found.exact or found.near)
            dropped = self._judge(document, found)
            if len(dropped) < len(parts):
                self._repeats.remember(document, found)
        else:
            self._repeats.remember_new([document], at)
        line, digest = document.line, document.digest.hex()
        if len({dropped.get(split) for split, _, _ in parts}) == 1 and dropped:
            parts = ((parts[0][0], 0, len(document.text)),)
        for number, (split, start, stop) in enumerate(parts, 1):
            part = Part(
                document.text[start:stop],
                document.source,
                line,
                split,
                digest,
                dropped.get(split),
                ends=number == len(parts),
                personal=_within(document.personal, start, stop),
                is_repeat=is_repeat,
                context=document.context if len(parts) == 1 else (),
                is_example=document.is_example,
                beside=document.beside,
            )
            if len(parts) == 1:
                self._report.count_part(part, document.num_words, document.num_bytes)
            else:
                self._report.count_part(part, count_words(part.text), size_in_utf8(part.text))
            line += 0 if document.is_record else document.text.count("\n", start, stop)
            yield part
            del part  # before the text of the next one is made

    def _judge(self, document: Candidate, found: Found) -> dict[Split, str]:
        """Count what a document repeats. Return the reason for each of its splits from which it is dropped."""
        exact, near = found.exact, found.near
        report, settings = self._report, self._settings
        splits = [split for split, _, _ in document.parts]
        if exact and exact.shares_split(document):
            drop = settings.deduplicate != "off"
            report.duplicates.count(document, exact, dropped=drop)
            if drop:  # the first document's other findings are reported already
                return dict.fromkeys(splits, DUPLICATE)
        elif near and near.shares_split(document):
            drop = settings.deduplicate == "near"
            report.near_duplicates.count(document, near, dropped=drop)
            if drop:
                return dict.fromkeys(splits, NEAR_DUPLICATE)
        reasons: dict[Split, str] = {}
        if exact and (leaks := exact.leaks(document)):
            drop = (
                settings.drop_overlap != "off" or document.beside is not None
            )  # nothing is lost: others take its place
            report.overlap.count(document, exact, dropped=drop)
            reasons |= dict.fromkeys(leaks, OVERLAP) if drop else {}
        elif near and (leaks := near.leaks(document)):
            drop = settings.drop_overlap == "near" or document.beside is not None
            report.near_overlap.count(document, near, dropped=drop)
            reasons |= dict.fromkeys(leaks, NEAR_OVERLAP) if drop else {}
        return reasons

    def _check_not_empty(self, split: Split, inputs: Sequence[Input]) -> None:
        if self._report.kept(split) or self._report.has_fatal_problems:
            return
        if split != "train":
            self._check_speaker([entry.name for entry in inputs])
        names = ", ".join(entry.name for entry in inputs[:5]) + (", …" if len(inputs) > 5 else "")
        names = names or ", ".join(self._report.sources)
        report = self._report.to_dict()
        dropped = [f"{entry['documents']} dropped as {entry['reason']}" for entry in report["dropped"]]
        if empty := report["skipped"]["empty"]:
            dropped.append(f"{empty} empty file{'s' * (empty != 1)}")
        reasons = "; ".join(dropped)
        what = {"train": "training", "validation": "validation", "test": "test"}[split]
        raise SourceError(
            f"There is no {what} text in {names}{f' ({reasons})' if reasons else ''}.",
            "Check that the right files are named; `finetale check` shows what is read and what is dropped.",
        )


def in_chunks(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Group items into lists of at most 1,000 items or 1 million characters, or of one larger item.

    Items before an error are yielded before the error is raised. The caller may change the lists.
    """
    chunk: list[T] = []
    total = 0
    late: FileError | None = None
    try:
        for item in items:
            chunk.append(item)
            total += size(item)
            del item  # so that memory does not hold a long item while the next one is made
            if total >= _CHUNK_CHARACTERS or len(chunk) >= _CHUNK_ITEMS:
                yield chunk
                chunk, total = [], 0
    except FileError as error:
        late = error
    if chunk:
        yield chunk
    if late is not None:
        raise late


def _size_of_raw(raw: tuple[int, Raw]) -> int:
    return len(raw[1]) if isinstance(raw[1], str) else characters_of(raw[1])


def evened(chunks: Iterable[list[Candidate]]) -> Iterator[list[Candidate]]:
    """Join small lists of documents and divide long ones, as `in_chunks` would group their documents. Empty the lists.

    Documents before an error are yielded before the error is raised.
    """
    held: list[Candidate] = []
    total = 0
    late: FileError | None = None
    try:
        for chunk in chunks:
            chunk.reverse()
            while chunk:
                held.append(chunk.pop())
                total += len(held[-1].text)
                if total >= _CHUNK_CHARACTERS or len(held) >= _CHUNK_ITEMS:
                    yield held
                    held, total = [], 0
    except FileError as error:
        late = error
    if held:
        yield held
    if late is not None:
        raise late


def _put_in(split: Split, chunks: Iterable[list[Candidate]]) -> Iterator[list[Candidate]]:
    for chunk in chunks:
        for candidate in chunk:
            candidate.split = split
            del candidate
        yield chunk


def _is_learned(entry: Input) -> bool:
    """Return whether a model may learn the text, which watched text is not for."""
    return entry.beside is None or entry.beside.share is not None


def _first_line(line: int, raw: str) -> int:
    """Return the line of the first character that is not white space in a text that starts at `line`."""
    return line + raw[: len(raw) - len(raw.lstrip())].count("\n")


def _joined(errors: Sequence[FileError]) -> SourceError:
    """Return one error for all. Unreadable files share one sentence, which names the first ones."""
    if len(errors) == 1:
        return errors[0]
    unreadable = [error for error in errors if error.kind == "unreadable"]
    messages = [error.message for error in errors if len(unreadable) == 1 or error.kind != "unreadable"]
    if len(unreadable) > 1:
        named = [f"{each.file} ({each.detail.rpartition('(')[2].rstrip(')')})" for each in unreadable[:MAX_NAMED]]
        if len(unreadable) > MAX_NAMED:
            named.append(f"and {len(unreadable) - MAX_NAMED:,} more")
        messages.append(f"{len(unreadable):,} files or folders can't be read: {', '.join(named)}.")
    return SourceError(" ".join(messages), " ".join(dict.fromkeys(error.hint for error in errors)))


def _within(places: tuple[tuple[int, int], ...], start: int, stop: int) -> tuple[tuple[int, int], ...]:
    """Convert places of a document to places of its part [start, stop)."""
    return tuple((max(a, start) - start, min(b, stop) - start) for a, b in places if a < stop and b > start)

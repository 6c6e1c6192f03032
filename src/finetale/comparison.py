"""Compare two models on the same texts, prompts and seeds: the content of comparison.json. Knows nothing of HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from finetale import schema
from finetale.answers import exercises
from finetale.config import CompareSettings, SamplingSettings
from finetale.generate import Generator
from finetale.metrics import INTERVAL_METHOD, Measurement, change
from finetale.text.openings import opening
from finetale.text.personal import find_personal_data, mask
from finetale.text.words import WORD, grams, words_of

if TYPE_CHECKING:
    from finetale.memorisation import Audit, Passage
    from finetale.models import LoadedModel
    from finetale.tokens import TokenStore

HELD_OUT: tuple[Literal["test", "validation"], ...] = ("test", "validation")
_EXAMPLES = 10
_SHARED_SHARE = 0.01  # of the held-out text; the verdict mentions text shared with training from here on
_EXAMPLE_CHARACTERS = 400
_RUN = 4  # words of the shortest copy that is reported


@dataclass
class Side:
    """One of the two models: its measurements by split, and its samples."""

    name: str
    loaded: LoadedModel
    measurements: dict[str, Measurement] = field(default_factory=dict)
    samples: list[schema.Sample] = field(default_factory=list)
    answers: schema.AnswerFigures | None = None


def held_out_prompts(
    store: TokenStore, tokenizer: Any, number: int, splits: Sequence[str] = HELD_OUT, words: int = 8
) -> list[str]:
    """Return the openings of the first documents of the splits, or `first_prompt` if the splits have no text.

    Openings with personal data are skipped.

    Args:
        number: maximum number of prompts.
        splits: splits in order of preference.
        words: length of a prompt.
    """
    return _openings(store, tokenizer, number, splits, words) or [first_prompt(store, tokenizer, words)]


def first_prompt(store: TokenStore, tokenizer: Any, words: int = 8) -> str:
    """Return one prompt in the language of a text, such as "Once upon a time" or "从前".

    If the text has examples, return the shortest prompt of some of them. If its language has no such opening, return
    the first words of the training text. If it has none, return an empty prompt, which lets the model begin.
    """
    asked = [each.prompt for each in exercises(store, tokenizer, _EXAMPLES, ("validation", "test", "train"))]
    if asked := [prompt for prompt in asked if not find_personal_data(prompt)]:
        return min(asked, key=len)
    begin = opening(store.report.get("languages") or ())
    if begin is not None:
        return begin
    return next(iter(_openings(store, tokenizer, 1, ("train",), words)), "")


def _openings(store: TokenStore, tokenizer: Any, number: int, splits: Sequence[str], words: int) -> list[str]:
    prompts: list[str] = []
    for split in splits:
        for part in store.parts_of(split).tolist():
            begin = tokenizer.decode(store.ids(part)[: 32 * words].tolist(), skip_special_tokens=True)
            prompt = _first_words(begin, words)
            if prompt and prompt not in prompts and not find_personal_data(prompt):
                prompts.append(prompt)
            if len(prompts) == number:
                return prompts
    return prompts


def draw_samples(
    side: Side,
    prompts: Sequence[str],
    settings: CompareSettings,
    between: Callable[[], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    references: Mapping[str, str] | None = None,
) -> None:
    """Fill `side.samples` with `num_samples` continuations of each prompt. Every model gets the same seeds.

    Args:
        references: by prompt, the answer in the text.
        between: called between tokens; may raise to stop.
        progress: receives (prompts done, prompts) before each prompt.
    """
    generator = Generator(side.loaded.model, side.loaded.tokenizer)
    sampling = settings.narrow(SamplingSettings)
    for done, prompt in enumerate(prompts):
        if progress is not None:
            progress(done, len(prompts))
        if between is not None:
            between()
        number = 1 if sampling.temperature == 0 else settings.num_samples
        samples = generator.generate([prompt], sampling, n=number, truncate=True, between=between)[0]
        for index, sample in enumerate(samples, 1):
            side.samples.append(
                schema.Sample(
                    prompt=prompt,
                    number=index,
                    text=sample.text,
                    seed=sample.seed,
                    num_tokens=sample.num_tokens,
                    finish_reason=sample.finish_reason,
                    reference=(references or {}).get(prompt),
                )
            )


def build(
    before: Side,
    after: Side,
    settings: CompareSettings,
    prompts: Sequence[str],
    *,
    same_tokenizer: bool,
    training_texts: Callable[[], Iterable[str]] | None,
    shared: Mapping[str, float] | None = None,
    is_held_out: bool = True,
    watched: Mapping[str, str] | None = None,
) -> schema.ComparisonFile:
    """Return the content of comparison.json, without `memorisation`.

    Args:
        same_tokenizer: whether both models read the same tokens. If not, or if white space does not separate the words
            of the text, bits per byte are compared in place of perplexity.
        training_texts: returns the texts that `after` was trained on, to look for verbatim copies; None if unknown.
        shared: by split, the share of its words that also occur in passages of the training text.
        is_held_out: whether the text was held out from training `after`; False for text that the user named.
        watched: by name of the split with a watched text, the name of its source.
    """
    changes = schema.Changes(
        validation=_change(before, after, "validation", same_tokenizer),
        test=_change(before, after, "test", same_tokenizer),
    )
    copies = longest_copies([[sample.text for sample in side.samples] for side in (before, after)], training_texts)
    base, tuned = (_described(side, copy) for side, copy in zip((before, after), copies, strict=True))
    judged = next((split for split in HELD_OUT if changes.on(split)), None)
    moved = changes.on(judged) if judged else None
    is_random = before.loaded.provenance.kind == "new"
    improved, reason = judge(moved, is_random=is_random)
    old, new = (side.on(judged) if judged else None for side in (base, tuned))
    text = _described_text(judged, (shared or {}).get(judged or "", 0.0), is_held_out=is_held_out)
    unit = new.interval_unit if new else None
    return schema.ComparisonFile(
        verdict=verdict(old, new, moved, text=text, is_random=is_random),
        improved=improved,
        improved_reason=reason,
        judged_on=judged,
        same_tokenizer=same_tokenizer,
        interval_unit=unit,
        interval_method=INTERVAL_METHOD if unit else None,
        prompts=list(prompts),
        settings=settings.narrow(SamplingSettings).model_dump(mode="json"),
        before=base,
        after=tuned,
        change=changes,
        watched=[
            schema.WatchedFigures(
                source=source,
                before=before.measurements[split].summary(),
                after=after.measurements[split].summary(),
                change=_change(before, after, split, same_tokenizer),
            )
            for split, source in (watched or {}).items()
            if split in before.measurements and split in after.measurements
        ],
    )


def judge(moved: schema.Change | None, *, is_random: bool) -> tuple[bool | None, str | None]:
    """Return whether the model got better, and a reason where the answer is None.

    A gain counts if its 95% interval excludes zero. The reasons: "no held-out text", "too few documents" (there is no
    interval), "random base" (any training beats random weights, so a gain says nothing).

    Args:
        moved: the change on the text that decides, as `metrics.change` returns it; None without such text.
        is_random: whether the model is compared with random weights.
    """
    if moved is None:
        return None, "no held-out text"
    if moved.percent >= 0 or moved.excludes_zero is False:
        return False, None
    if is_random:
        return None, "random base"
    if moved.interval is None:
        return None, "too few documents"
    return True, None


def describe_audit(
    audits: Mapping[str, Audit], store: TokenStore, tokenizer: Any, *, has_base: bool
) -> schema.Memorisation:
    """Return the `memorisation` of comparison.json: counts of each audit, and examples from the training text.

    The examples are the most surprising passages. Personal data in them is masked, because the file may be published.

    Args:
        audits: audits by name, "training" and "held_out".
        has_base: whether passages that the base would also write were left out.
    """
    described: dict[str, schema.MemorisationAudit] = {}
    for name, audit in audits.items():
        known = [*audit.passages, *(passage for passage in audit.short if _holds_personal_data(passage, store))]
        passages = [_describe_passage(passage, store, tokenizer) for passage in known]
        passages.sort(key=lambda passage: (not passage.personal_data, -passage.bits))
        described[name] = schema.MemorisationAudit(
            tokens=audit.tokens,
            of_tokens=audit.of_tokens,
            memorised_tokens=sum(passage.tokens for passage in passages),
            passages=len(passages),
            with_personal_data=sum(passage.personal_data for passage in passages),
            examples=passages[:_EXAMPLES] if name == "training" else None,
        )
    return schema.Memorisation(
        has_base=has_base, training=described.get("training"), held_out=described.get("held_out")
    )


def _holds_personal_data(passage: Passage, store: TokenStore) -> bool:
    first = int(np.searchsorted(store.personal[:, 1], passage.start, "right"))
    return first < len(store.personal) and bool(store.personal[first, 0] < passage.start + passage.tokens)


def _describe_passage(passage: Passage, store: TokenStore, tokenizer: Any) -> schema.MemorisedPassage:
    """Return a passage for comparison.json, with [...] instead of personal data."""
    stop = passage.start + passage.tokens
    first = int(np.searchsorted(store.personal[:, 1], passage.start, "right"))
    found = [(a, b) for a, b in store.personal[first : first + passage.tokens].tolist() if a < stop]
    pieces, at = [], passage.start
    for a, b in found:
        pieces += [tokenizer.decode(store.tokens[at : max(a, at)].tolist(), skip_special_tokens=True), "[...]"]
        at = min(b, stop)
    pieces.append(tokenizer.decode(store.tokens[at:stop].tolist(), skip_special_tokens=True))
    shown = "".join(pieces)
    return schema.MemorisedPassage(
        place=store.name_of(passage.part),
        tokens=passage.tokens,
        bits=passage.bits,
        personal_data=bool(found),
        text=shown if len(shown) <= _EXAMPLE_CHARACTERS else shown[:_EXAMPLE_CHARACTERS] + " …",
    )


def verdict(
    before: schema.Figures | None,
    after: schema.Figures | None,
    moved: schema.Change | None,
    *,
    text: str = "text it never saw",
    is_random: bool = False,
) -> str:
    """Return one or two plain sentences: whether the model got better, by which measure, and on which text.

    Args:
        before, after, moved: figures and change on the text that decides; None without such text.
        text: description of the text that was measured.
        is_random: whether `before` has random weights.
    """
    if before is None or after is None or moved is None:
        return "There was no held-out text, so it is unknown whether the model got better."
    if moved.per == "byte":
        measure, form, old, new = "bits per byte", _bits, before.bits_per_byte, after.bits_per_byte
    else:
        measure, form, old, new = "perplexity", _number, before.perplexity, after.perplexity
    percent = _signed(moved.percent)
    interval, note = "", ""
    if moved.interval is not None:
        interval = f", 95% interval {_signed(moved.interval[0])} to {_signed(moved.interval[1])}"
    else:
        note = _no_interval(before.documents, after.documents)
    numbers = f"{form(old)} to {form(new)} ({percent}{interval})"
    if moved.percent == 0:
        return f"The model did not get better: on {text}, {measure} stayed at {form(old)}.{note}"
    if moved.percent > 0:
        return f"The model did not get better: on {text}, {measure} rose from {numbers}.{note}"
    if moved.excludes_zero is False:
        return (
            f"It is not clear that the model got better: on {text}, {measure} went from {numbers}, "
            "and the interval includes no change."
        )
    if is_random:
        return (
            f"Compared with random weights, which any training beats: on {text}, {measure} fell from {numbers}.{note}"
        )
    return f"On {text}, {measure} fell from {numbers}.{note}"


def _described_text(judged: str | None, shared: float, *, is_held_out: bool) -> str:
    """Describe the text of the verdict: whether the model saw it, chose its step by it, or trained on some of it."""
    if not is_held_out:
        return "the given text"
    overlap = f"of which {shared:.0%} also occurs in the training text" if shared >= _SHARED_SHARE else ""
    if judged == "validation":
        return "the validation text, which also chose the step that was kept" + (f" and {overlap}" if overlap else "")
    return f"held-out text {overlap}" if overlap else "text it never saw"


def _no_interval(before: int, after: int) -> str:
    """Return the sentence about figures without an interval, with a space before it."""
    if before != after:
        return f" There is no interval: one model read {before:,} documents of the text and the other {after:,}."
    if after == 1:
        return " This is one document, so the figures hold for this text only."
    return f" These are {after} documents, too few for an interval, so the figures hold for this text only."


def _signed(percent: float) -> str:
    return f"{percent:+.1f}%".replace("-", "−")


def sample_metrics(texts: Sequence[str]) -> dict[str, float | None]:
    """Return how varied samples are, as shares between 0 and 1; None if there are no n-grams.

    - distinct_n (Li et al. 2016, "A diversity-promoting objective function"): different n-grams of words / all n-grams.
    - repetition: share of the 4-grams that occurred earlier in the same sample.
    """
    words = [words_of(text) for text in texts]
    found: dict[str, float | None] = {}
    for n in (1, 2, 3):
        seen = Counter(gram for item in words for gram in grams(item, n))
        found[f"distinct_{n}"] = len(seen) / seen.total() if seen else None
    repeated = total = 0
    for item in words:
        seen = Counter(grams(item, _RUN))
        repeated += seen.total() - len(seen)
        total += seen.total()
    found["repetition"] = repeated / total if total else None
    return found


def longest_copies(
    groups: Sequence[Sequence[str]], training_texts: Callable[[], Iterable[str]] | None
) -> list[schema.LongestMatch | None]:
    """Return, for each group of samples, the longest run of words that also occurs in the training text.

    Words are compared without case and punctuation. The training text is read once. Runs of fewer than 4 words count as
    0. The results are None if the training text is unknown.
    """
    if training_texts is None:
        return [None for _ in groups]
    samples = [[(text, words_of(text)) for text in group] for group in groups]
    best: list[tuple[int, str]] = [(0, "") for _ in groups]
    starts: dict[tuple[str, ...], list[tuple[int, int, int]]] = {}
    for g, group in enumerate(samples):
        for s, (_, words) in enumerate(group):
            for at, gram in enumerate(grams(words, _RUN)):
                starts.setdefault(gram, []).append((g, s, at))
    for text in training_texts():
        words = words_of(text)
        for at, gram in enumerate(grams(words, _RUN)):
            for g, s, start in starts.get(gram, ()):
                own = samples[g][s][1]
                length = _RUN
                while (
                    start + length < len(own) and at + length < len(words) and own[start + length] == words[at + length]
                ):
                    length += 1
                if length > best[g][0]:
                    best[g] = (length, _original(samples[g][s][0], start, length))
    return [schema.LongestMatch(words=length, text=mask(text, find_personal_data(text))) for length, text in best]


def _described(side: Side, copy: schema.LongestMatch | None) -> schema.Side:
    figures = {split: measurement.summary() for split, measurement in side.measurements.items()}
    shares = sample_metrics([sample.text for sample in side.samples])
    ends = [sample.finish_reason == "end" for sample in side.samples]
    ended = sum(ends) / len(ends) if ends else None
    return schema.Side(
        name=side.name,
        parameters=side.loaded.provenance.parameters,
        validation=figures.get("validation"),
        test=figures.get("test"),
        samples=side.samples,
        sample_metrics=schema.SampleMetrics(**shares, longest_match=copy, ended=ended),
        answers=side.answers,
    )


def _change(before: Side, after: Side, split: str, same_tokenizer: bool) -> schema.Change | None:
    old, new = before.measurements.get(split), after.measurements.get(split)
    if old is None or new is None:
        return None
    return change(old, new, per="token" if same_tokenizer and old.spaced and new.spaced else "byte")


def _original(text: str, start: int, length: int) -> str:
    """Return the text from the word number `start` to the word number `start + length - 1`."""
    spans = [match.span() for match in WORD.finditer(text)]
    return text[spans[start][0] : spans[start + length - 1][1]]


def _first_words(text: str, number: int) -> str:
    """Return the first words of the first line with more words, to skip headings, or of the longest line."""
    lines = [line.split() for line in text.splitlines()]
    longest = max(lines, key=lambda words: sum(map(len, words)), default=[])
    words = next((words for words in lines if len(words) > number), longest)[:number]
    prompt = " ".join(words)
    # Scripts without spaces look like endless words; two characters are about one word.
    return prompt[: 2 * number] if max(map(len, words), default=0) > 24 else prompt


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}" if value < 1e6 else f"{value:.2e}"


def _bits(value: float) -> str:
    return f"{value:.3f}"

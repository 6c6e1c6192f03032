"""What was found in the text: repeats, leaks and personal data → sentences, for the terminal, the page and the card alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetale.formatting import at, count, finite, objects, share

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
    ("overlap", "{} training documents also stand in the validation or test text", "--drop-overlap exact", True),
    (
        "near_overlap",
        "{} documents are nearly the same in the training text and in the validation or test text",
        "--drop-overlap near",
        True,
    ),
)


SHARED_SHARE = 0.005
"""Share of held-out text in the training text from which on it is told."""


@dataclass(frozen=True)
class TextFinding:
    """One thing that a person should know about a text.

    Attributes:
        what: a sentence without its full stop.
        remedy: the option that does something about it; empty if that was done.
        effect: what the option does.
        matters: whether what a run says or gives away suffers from it.
        places: the first places, as file:line.
    """

    what: str
    remedy: str
    effect: str
    matters: bool
    places: tuple[str, ...]

    def sentence(self) -> str:
        """With its remedy, for a command line."""
        return f"{self.what}{f' ({self.remedy} {self.effect})' if self.remedy else ''}."


def text_findings(text: Any) -> list[TextFinding]:
    """What a data report (`text` of data.json) says of repeats, leaks and personal data; nothing for what it does not."""
    found = []
    for key, form, remedy, matters in _REPEATS:
        number = finite(at(text, key, "documents"))
        if not number:
            continue
        what = form.format(count(number))
        if number == 1:
            what = _in_the_singular(what)
        gone = (finite(at(text, key, "dropped")) or 0) >= number
        found.append(
            TextFinding(
                f"{what}{', and were left out' if gone else ''}"
                + ("" if gone or not matters else ", so the figures on it flatter the model"),
                "" if gone else remedy,
                "leaves them out",
                matters and not gone,
                _places(text, key),
            )
        )
    passages = at(text, "shared_passages")
    unit = "words" if at(passages, "unit") == "words" else "tokens"  # tokens, in runs of older versions
    for split in ("validation", "test"):
        total, shared = (finite(at(passages, split, key)) or 0 for key in (unit, "shared"))
        if total and shared / total >= SHARED_SHARE:
            window = count(at(passages, "window"))
            what = (
                f"{share(shared / total)} of the {unit} of the {split} text stand word for word in the training text too,"
                f" in passages of {window} {unit} or more"
            )
            found.append(
                TextFinding(
                    f"{what}, so the figures on it flatter the model",
                    f"--{split} FILE",
                    "holds out text of your own choice",
                    True,
                    (),
                )
            )
    counts = at(text, "personal_data", "counts")
    if isinstance(counts, Mapping) and counts:
        named = [f"{count(number)} {_KINDS.get(kind, (kind, kind))[number != 1]}" for kind, number in counts.items()]
        masked = bool(finite(at(text, "cleaning", "masked_personal_data")))
        what = f"Personal data in {count(at(text, 'personal_data', 'documents'))} documents: {', '.join(named)}"
        if at(text, "personal_data", "documents") == 1:
            what = _in_the_singular(what)
        found.append(
            TextFinding(
                f"{what}{', all masked' if masked else ''}",
                "" if masked else "--mask-personal-data",
                "masks it",
                not masked,
                _places(text, "personal_data"),
            )
        )
    return found


def not_looked_for(text: Any) -> str:
    """A sentence on what the report says nothing of, because it was not looked for; empty if all was."""
    if not isinstance(text, Mapping) or not text:
        return ""
    missing = [
        name
        for key, name in (("near_duplicates", "near repeats"), ("personal_data", "personal data"))
        if text.get(key) is None
    ]
    limit = finite(at(text, "near_duplicates", "compared_with"))
    crowded = finite(at(text, "near_duplicates", "not_compared_with_all"))
    if crowded:
        return (
            f"{count(crowded)} documents are in part like so many others that they were not compared with all of them."
        )
    if limit:
        return f"Near repeats were looked for among the first {count(limit)} documents only."
    names = " and ".join(missing)
    return (
        f"{names[:1].upper()}{names[1:]} {'was' if missing == ['personal data'] else 'were'} not looked for."
        if missing
        else ""
    )


def _in_the_singular(what: str) -> str:
    for many, one in (
        (" documents", " document"),
        (" repeat ", " repeats "),
        (" stand ", " stands "),
        (" are ", " is "),
        (" their ", " its "),
    ):
        what = what.replace(many, one)
    return what


def _places(text: Any, key: str) -> tuple[str, ...]:
    """The first places, each with the earlier one it repeats."""
    places = []
    for example in objects(at(text, key, "examples")):
        earlier = example.get("first_seen") or example.get("also_in") or example.get("kind")
        places.append(f"{example.get('source')}:{example.get('line')}{f' ({earlier})' if earlier else ''}")
    return tuple(places)

"""Characters of the fonts Symbol and Wingdings, which use other code points than Unicode."""

from __future__ import annotations

_SYMBOL = dict(
    zip(
        "ABCDEFGHIKLMNOPQRSTUXYZabcdefghiklmnopqrstuxyz",
        "ΑΒΧΔΕΦΓΗΙΚΛΜΝΟΠΘΡΣΤΥΞΨΖαβχδεφγηικλμνοπθρστυξψζ",
        strict=True,
    )
) | {
    "V": "ς", "W": "Ω", "J": "ϑ", "j": "φ", "v": "ϖ", "w": "ω", "-": "−", "'": "∋", '"': "∀", "$": "∃", "*": "∗",
    "@": "≅", "^": "⊥", "\\": "∴", "~": "∼",
    "\xa2": "′", "\xa3": "≤", "\xa4": "⁄", "\xa5": "∞", "\xa7": "♣", "\xa8": "♦", "\xa9": "♥", "\xaa": "♠",
    "\xab": "↔", "\xac": "←", "\xad": "↑", "\xae": "→", "\xaf": "↓", "\xb0": "°", "\xb1": "±", "\xb2": "″", "\xb3": "≥",
    "\xb4": "×", "\xb5": "∝", "\xb6": "∂", "\xb7": "•", "\xb8": "÷", "\xb9": "≠", "\xba": "≡", "\xbb": "≈", "\xbc": "…",
    "\xc7": "∩", "\xc8": "∪", "\xce": "∈", "\xcf": "∉", "\xd1": "∇", "\xd2": "®", "\xd3": "©", "\xd4": "™", "\xd6": "√",
    "\xdb": "⇔", "\xdc": "⇐", "\xdd": "⇑", "\xde": "⇒", "\xdf": "⇓", "\xe5": "∑", "\xf2": "∫",
}  # fmt: skip
_WINGDINGS = {
    "(": "☎", "*": "✉", "J": "☺", "K": "😐", "L": "☹", "l": "●", "n": "■", "o": "□", "q": "❑", "u": "◆", "v": "❖",
    "\x9e": "·", "\x9f": "•", "\xa7": "▪", "\xa8": "◻", "\xab": "★", "\xd8": "➢", "\xdf": "←", "\xe0": "→", "\xe1": "↑",
    "\xe2": "↓", "\xe8": "➔", "\xf0": "⇨", "\xfb": "✗", "\xfc": "✓", "\xfd": "☒", "\xfe": "☑",
}  # fmt: skip
_FONTS = {"symbol": _SYMBOL, "wingdings": _WINGDINGS}


def symbol(code: int, font: str) -> str | None:
    """Return the Unicode character for a character of a font. None if the font is unknown or has no such character.

    Args:
        code: the character; 0xF020 to 0xF0FF stand for the font's own 0x20 to 0xFF.
        font: name of the font.
    """
    table = _FONTS.get(font.strip().lower())
    own = code - 0xF000 if 0xF000 <= code <= 0xF0FF else code
    if table is None:
        return None if own != code or not 0x20 <= code <= 0xFFFF or 0xD800 <= code <= 0xDFFF else chr(code)
    if own > 0xFF:
        return chr(own) if own <= 0xFFFF and not 0xD800 <= own <= 0xF8FF else None
    character = chr(own)
    if character in table:
        return table[character]
    return character if table is _SYMBOL and character in " !#%&()+,./0123456789:;<=>?[]_{|}" else None

"""What the elements, roles and classes of a web page say about it: a menu, an article, a footnote, a quotation."""

from __future__ import annotations

import re
from typing import Literal

PageKind = Literal["web", "book", "mail"]


def names_in(names: str) -> frozenset[str]:
    """Return the words of a text as a set."""
    return frozenset(names.split())


_REGION_OF_TAG = {
    "main": "main",
    "article": "article",
    "nav": "menu",
    "footer": "footer",
    "header": "header",
    "aside": "sidebar",
    "form": "form",
    "search": "form",
    "dialog": "dialog",
    "noscript": "hidden passage",
}
_REGION_OF_ROLE = {
    "navigation": "menu",
    "menu": "menu",
    "menubar": "menu",
    "toolbar": "menu",
    "search": "form",
    "banner": "header",
    "contentinfo": "footer",
    "complementary": "sidebar",
    "dialog": "dialog",
    "alertdialog": "dialog",
    "doc-toc": "menu",
}
_REGION_OF_CLASS = {
    **dict.fromkeys(
        names_in(
            "nav navbar navigation menu main-menu site-nav main-nav top-nav breadcrumb breadcrumbs pagination pager "
            "skip-link skip-links post-navigation nav-links tag-links taglist toc"
        ),
        "menu",
    ),
    **dict.fromkeys(names_in("sidebar side-bar widget-area widget related related-posts related-articles"), "sidebar"),
    **dict.fromkeys(names_in("site-footer page-footer footer colophon copyright"), "footer"),
    **dict.fromkeys(names_in("site-header masthead page-header-bar"), "header"),
    **dict.fromkeys(
        names_in("comments comment-list commentlist comments-area comment-respond respond disqus_thread"),
        "comment section",
    ),
    **dict.fromkeys(
        names_in(
            "share sharing share-buttons social social-share social-links sharedaddy newsletter newsletter-signup "
            "subscribe cookie cookies cookie-banner cookie-notice cookie-consent consent gdpr advert advertisement "
            "ad-slot sponsored promo paywall-prompt"
        ),
        "advertisement",
    ),
    **dict.fromkeys(names_in("screen-reader-text visually-hidden sr-only noprint"), "hidden passage"),
}
_CLASSED = names_in("div section ul ol table td p span a aside")
NOTES = frozenset(("footnote", "footnotes"))
_GENERATED = names_in("bullet_20_symbols numbering_20_symbols")
"""Classes of the marks of list items in LibreOffice's XHTML."""
_QUOTATIONS = names_in(
    "gmail_quote gmail_attr moz-cite-prefix yahoo_quoted yahoo-quoted protonmail_quote zmail_extra divrplyfwdmsg "
    "appendonsend mail-editor-reference-message-container"
)
_SIGNATURES = names_in("gmail_signature moz-signature signature ms-outlook-mobile-signature protonmail_signature_block")
_NOTE_TYPES = names_in("footnote endnote rearnote doc-footnote doc-endnote")
_NOTES_TYPES = names_in("footnotes endnotes rearnotes doc-endnotes")
_NOTES_TAGS = names_in("section aside div ol")
_NOTES_CLASSES = names_in("footnotes endnotes references reflist")
_OFFICE_NOTE = re.compile(r"sd(?:foot|end)note\d+")
_HIDING = re.compile(r"(?:^|[;\s])(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.IGNORECASE)


def region_kind(
    tag: str, attributes: dict[str, str], page: PageKind, above: str, *, in_article: bool, in_list: bool
) -> str:
    """Return the kind of the region that an element starts, "" if it starts none.

    Args:
        tag: name of the element.
        attributes: its attributes.
        page: kind of the page.
        above: kind of the region that holds it.
        in_article: whether it is in <main> or <article>.
        in_list: whether it is in a list.
    """
    by_tag = "" if in_article and tag in ("header", "aside") else _REGION_OF_TAG.get(tag, "")
    if above == "footnotes":
        by_tag = "footnote" if tag == "li" else ""
    elif tag in ("ul", "ol") and not in_list:
        by_tag = "list"
    if not attributes:
        return by_tag
    role = attributes.get("role", "").lower()
    types = types_of(attributes)
    classes = set(attributes.get("class", "").lower().split())
    identity = attributes.get("id", "").lower()
    if not classes.isdisjoint(_GENERATED):
        return "generated"
    if page == "mail" and (found := _of_mail(tag, classes, identity, attributes)):
        return found
    if tag == "div" and attributes.get("title") in ("header", "footer"):  # of LibreOffice
        return f"page {attributes['title']}"
    if types & _NOTE_TYPES or (tag == "div" and _OFFICE_NOTE.fullmatch(identity)):
        return "footnote"
    if types & _NOTES_TYPES or (tag in _NOTES_TAGS and classes & _NOTES_CLASSES):
        return "footnotes"
    if "pagebreak" in types or "doc-pagebreak" in types:
        return "page number"
    style = attributes.get("style", "")
    if "hidden" in attributes or attributes.get("aria-hidden", "").lower() == "true" or _HIDING.search(style):
        return "hidden passage"
    if role == "main" or attributes.get("itemprop", "").lower() == "articlebody":
        return "main"
    if role == "article":
        return role
    if found := _REGION_OF_ROLE.get(role) or (by_tag if by_tag != "list" else ""):
        return found
    if page == "web" and tag in _CLASSED and not in_article:
        named = (_REGION_OF_CLASS.get(name) for name in (*sorted(classes), identity))
        return next(filter(None, named), by_tag)
    return by_tag


def types_of(attributes: dict[str, str]) -> set[str]:
    """Return the words of an element's `role` and `epub:type`."""
    return {attributes.get("role", "").lower(), *attributes.get("epub:type", "").lower().split()}


def _of_mail(tag: str, classes: set[str], identity: str, attributes: dict[str, str]) -> str:
    """Return whether an element of a mail is a quotation or a signature, "" if it is neither."""
    if tag == "blockquote" and attributes.get("type", "").lower() == "cite":
        return "quotation"
    names = {*classes, identity}
    return "quotation" if names & _QUOTATIONS else "signature" if names & _SIGNATURES else ""

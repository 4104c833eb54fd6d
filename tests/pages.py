"""What a page would fetch from other hosts."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_ELSEWHERE = re.compile(r"\s*(https?:)?//", re.IGNORECASE)
_IN_CSS = re.compile(r"(?:url\(|@import)\s*['\"]?\s*((?:https?:)?//[^'\")\s]+)", re.IGNORECASE)
_FETCHED = ("src", "srcset", "poster", "data", "action", "formaction", "background")


class _Sources(HTMLParser):
    """Collects the addresses that a browser fetches by itself; links to click on are not among them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        fetched = (*_FETCHED, "href") if tag in ("link", "base", "use", "image") else _FETCHED
        self.found += [value for name, value in attrs if name in fetched and value and _ELSEWHERE.match(value)]


def external_sources(html: str) -> list[str]:
    """Addresses on other hosts that a browser fetches when it shows the page.

    >>> external_sources('<link href="https://a.b/c.css"><a href="https://d.e">f</a><script src="/g.js"></script>')
    ['https://a.b/c.css']
    """
    parser = _Sources()
    parser.feed(html)
    return [*parser.found, *_IN_CSS.findall(html)]

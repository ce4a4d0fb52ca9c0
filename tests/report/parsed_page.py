"""A page taken apart by a parser that shares no code with what wrote it, and what every page promises."""

import re
from html.parser import HTMLParser

from simpo_cli.report.page import PAGE_MARK

VOID = {"meta", "link", "img", "br", "input", "hr"}


class Page(HTMLParser):
    """Collects a page's elements and text, and checks that every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.raw = page
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def require_stands_alone(raw: str) -> Page:
    """Check a page's text and return it taken apart."""
    page = Page(raw)
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    for tag, attributes in page.tags:
        assert tag not in ("link", "script", "img", "iframe", "object", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert (value or "").startswith("#")
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert PAGE_MARK in raw[:1000]
    assert "prefers-color-scheme: dark" in raw
    assert "@media print" in raw
    assert not re.search(r"url\(\s*['\"]?(?!#)", raw)
    assert "@import" not in raw
    assert not re.search(r"#0102[0-9]{2}", raw)  # every stand-in for a colour has got its colour
    return page

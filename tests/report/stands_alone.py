"""What every page promises: one file that asks for nothing, runs nothing, and shows itself in light, dark and print."""

import re

from simpo_cli.report.page import PAGE_MARK
from tests.report.parsed_page import Page


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

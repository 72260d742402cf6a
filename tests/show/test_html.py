from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

from autopar.show.html import to_fragment, to_html
from autopar.show.report import report

VOID = {"meta"}


class Balance(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.open += [] if tag in VOID else [tag]
        self.links += [value for key, value in attrs if key in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_balanced_and_needs_nothing_else(sample_plan):
    balance = Balance()
    page = to_html(report(sample_plan))
    balance.feed(page)
    assert balance.open == []
    assert balance.links == []
    assert "http" not in page
    assert page.startswith("<!doctype html>")


def test_names_are_escaped(sample_plan):
    fragment = to_fragment(report(replace(sample_plan, model="<script>x</script>")))
    assert "<script>" not in fragment
    assert "&lt;script&gt;" in fragment


def test_holds_what_the_report_holds(sample_plan):
    fragment = to_fragment(report(sample_plan))
    assert "17.6 GiB (22 %)" in fragment
    assert "torchrun --nnodes 2" in fragment

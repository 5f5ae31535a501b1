"""The glossary: one sentence per term, in alphabetical order, with a link to the page where it matters."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/glossary.md"
ROWS = re.findall(r"(?m)^\| (?!term \|)([^|]+) \| (.+) \|$", PAGE.read_text())


def test_terms_are_sorted_and_occur_once() -> None:
    terms = [term for term, _ in ROWS]
    assert len(terms) > 40
    assert terms == sorted(terms, key=str.lower)
    assert len(set(terms)) == len(terms)


def test_each_term_has_one_sentence_and_a_link() -> None:
    for term, text in ROWS:
        assert re.fullmatch(r"[A-Z][^.]* \(\[[^\]]+\]\([\w./#-]+\)\)\.", text), term

"""docs/options.md is what scripts/options_page.py makes of the options; and it has all of them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import options_page

from rllib_damo import ALGORITHMS


def test_the_page_is_current() -> None:
    page = options_page.page()
    assert options_page.PAGE.read_text() == page, "run `python scripts/options_page.py`"
    assert max(map(len, page.splitlines())) <= 118


def test_each_algorithm_has_all_its_options() -> None:
    """In its own section, or in the groups that it names."""
    sections = dict(re.findall(r"^### (.+)\n((?:(?!^##).*\n)*)", options_page.page(), flags=re.M))
    titles = {options_page.anchor(title): title for title in sections}
    for name, algorithm in ALGORITHMS.items():
        groups = re.findall(r"\]\(#([^)]+)\)", sections[name].split("Other defaults")[0].split("- **")[0])
        text = "".join(sections[part] for part in [name, *map(titles.get, groups)])
        found = re.findall(r"^- \*\*`(\w+)`", text, flags=re.M)
        assert sorted(found) == sorted(algorithm.get_default_config().own_options()), name


def test_no_line_starts_a_list_or_a_quotation_by_accident() -> None:
    for line in options_page.page().splitlines():
        assert re.match(r"(- \*\*`|[^-+>\s]|  [^-+>\s]|$)", line), line
        assert not re.match(r"\s*\d+[.)] ", line), line


def test_defaults_are_written_as_in_python() -> None:
    values = (50_000, True, None, float("inf"), "auto", (256, 256), 3e-4)
    assert [options_page.value(v) for v in values] == [
        "`50_000`", "`True`", "`None`", "`float('inf')`", "`'auto'`", "`(256, 256)`", "`0.0003`",
    ]  # fmt: skip

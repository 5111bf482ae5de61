"""What mkdocs does beside its own: pages outside docs/ become part of the site, and links to them are kept.

In the repository a link leads from file to file, so that it works where files are shown as they are.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
#: Files outside docs/, and their places in the site.
SHOWN = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "CITATION.cff": "CITATION.cff",
    "benchmarks/RESULTS.md": "benchmarks/RESULTS.md",
    "benchmarks/SPEED.md": "benchmarks/SPEED.md",
    "benchmarks/LOG.md": "benchmarks/LOG.md",
    "benchmarks/scores/scores.md": "benchmarks/scores/scores.md",
    "benchmarks/scores/curves.png": "benchmarks/scores/curves.png",
} | {place: place for path in ROOT.glob("benchmarks/paper/*.png") if (place := str(path.relative_to(ROOT)))}
_SOURCES = {place: source for source, place in SHOWN.items()}


def on_files(files: Files, config: Any) -> Files:
    """Adds the files outside docs/."""
    for source, place in SHOWN.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **others: Any) -> str:
    """Links between files of the repository become links between places of the site."""
    place = page.file.src_uri
    source = _SOURCES.get(place, f"docs/{place}")

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["path"]))
        target = SHOWN.get(target, target.removeprefix("docs/"))
        return f"]({posixpath.relpath(target, posixpath.dirname(place) or '.')}{link['anchor'] or ''})"

    return re.sub(r"\]\((?P<path>[^)#:]+)(?P<anchor>#[^)]*)?\)", moved, markdown)

"""The HTML report as Chromium shows it: nothing fails, nothing is too wide, text can be read in both colour schemes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from rllib_damo.report.page import write_report
from tests.test_report import epoch, result, write_trial

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")

#: Tells the page around it what is shown.
PROBE = """
<script>
const failed = [];
addEventListener("error", event => failed.push(String(event.message)));
addEventListener("load", () => {
  const part = v => v <= 0.04 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(v => part(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const texts = [...document.querySelectorAll("h1, h2, p, td, figcaption")].filter(e => e.textContent.trim());
  const below = light(getComputedStyle(document.body).backgroundColor);
  parent.postMessage(JSON.stringify({
    failed, width: innerWidth, wide: document.documentElement.scrollWidth - innerWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    contrast: Math.min(...texts.map(e => contrast(light(getComputedStyle(e).color), below))),
    drawn: [...document.querySelectorAll("svg")].filter(e => e.getBoundingClientRect().height > 20).length,
  }), "*");
});
</script>
"""
#: A frame, for a window of Chromium is 500 pixels wide at least.
FRAME = """<html><head><title></title><script>
addEventListener("message", event => { document.title = event.data; });
</script></head><body><iframe src="report.html" style="width: WIDTHpx; height: 900px; border: 0"></iframe></body></html>
"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 400])
def test_is_shown_whole_and_can_be_read(tmp_path: Path, width: int, dark: bool) -> None:
    for i in range(3):
        rows = [epoch(j, 3.0 / j) for j in range(1, 4)] + [result(j, score=10.0 * i + j) for j in range(4, 9)]
        write_trial(tmp_path / "run" / f"DAMO_{i}", rows, eta=0.5 * (i + 1), rollout_length=1 + i % 2)
    page = Path(write_report(tmp_path / "run", tmp_path / "report.html"))
    page.write_text(page.read_text().replace("<head>", f"<head>{PROBE}", 1))
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)))
    shown = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1400,1000", "--no-first-run", "--disable-background-networking",
            "--virtual-time-budget=5000", f"--blink-settings=preferredColorScheme={int(not dark)}", "--dump-dom",
            frame.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = json.loads(shown.stdout.split("<title>")[1].split("</title>")[0])
    assert found["failed"] == []
    assert (found["width"], found["dark"]) == (width, dark)
    assert found["wide"] <= 0
    assert found["contrast"] >= 4.5
    assert found["drawn"] >= 5

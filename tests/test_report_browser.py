"""The page of a comparison in a real browser, at the width of a desk and of a phone."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command_runs import call
from compared_runs import copy_run, make_runs

from splade_lit import compare

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")

# Looks at the page inside a frame: what sticks out of it sideways, and which texts of a chart lie on one another.
LOOK = """
const frame = document.querySelector("iframe"), found = {out: [], over: [], charts: 0, wide: 0, shaded: 0};
function look() {
  const page = frame.contentDocument, width = frame.contentWindow.innerWidth;
  page.querySelectorAll("details").forEach(one => one.open = true);
  found.width = width;
  found.scrolls = page.documentElement.scrollWidth > width;
  for (const one of page.body.querySelectorAll("*")) {
    const box = one.getBoundingClientRect();
    if (box.width && !one.closest(".scroll table") && (box.right > width + 0.5 || box.left < -0.5))
      found.out.push(one.outerHTML.slice(0, 80));
  }
  for (const one of page.querySelectorAll(".scroll")) {
    if (one.scrollWidth > one.clientWidth + 1) {
      found.wide += 1;
      found.shaded += frame.contentWindow.getComputedStyle(one).backgroundImage.split("linear-gradient").length === 5;
    }
  }
  for (const chart of page.querySelectorAll("svg.chart")) {
    found.charts += 1;
    const frame = chart.getBoundingClientRect(), texts = [...chart.querySelectorAll("text")];
    const boxes = texts.map(text => text.getBoundingClientRect());
    boxes.forEach((a, i) => {
      if (a.left < frame.left - 1 || a.right > frame.right + 1 || a.bottom > frame.bottom + 1 || a.top < frame.top - 1)
        found.out.push(texts[i].textContent);
      boxes.slice(i + 1).forEach((b, j) => {
        if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1)
          found.over.push(texts[i].textContent + " on " + texts[i + 1 + j].textContent);
      });
    });
  }
  document.body.textContent = JSON.stringify(found);
}
frame.onload = look;
"""


def look_at(page: Path, width: int, folder: Path) -> dict[str, Any]:
    """What the browser finds in the page, shown so wide."""
    source = html.escape(page.read_text(encoding="utf-8"), quote=True)
    wrapper = folder / f"wrapper_{width}.html"
    wrapper.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">'
        f'<iframe style="border:0" width="{width}" height="3000" srcdoc="{source}"></iframe><script>{LOOK}</script>',
        encoding="utf-8",
    )
    assert BROWSER is not None
    done = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            f"--user-data-dir={folder / f'profile_{width}'}",
            *("--window-size=1400,1000", "--virtual-time-budget=20000", "--dump-dom", wrapper.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    shown = re.search(r"<body[^>]*>(\{.*\})</body>", done.stdout, re.DOTALL)
    assert shown, done.stderr[-2000:]
    return json.loads(html.unescape(shown[1]))


@pytest.fixture(scope="module")
def page(tmp_path_factory, tiny_tokenizer) -> Path:
    """Runs, one with a long name without a break, BM25, and a system of somebody else."""
    folder = tmp_path_factory.mktemp("browser")
    runs = make_runs(folder, tiny_tokenizer)
    named = copy_run(runs.sparse, folder / ("a_run_with_a_very_long_name_" * 4))
    (folder / "peer.json").write_text('{"NanoBEIR_mean_dot_ndcg@10": 0.5, "NanoBEIR_mean_corpus_active_dims": 12345.6}')
    output = folder / "page.html"
    outcome = call(compare.main, runs.dense, named, runs.stopped, "--results", folder / "peer.json", "--output", output)
    assert outcome.code == 0, outcome.err
    return output


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out_and_nothing_overlaps(page, width, tmp_path):
    found = look_at(page, width, tmp_path)
    assert found["width"] == width
    assert found["charts"] == page.read_text(encoding="utf-8").count('class="chart"') >= 12
    assert (found["scrolls"], found["out"], found["over"]) == (False, [], [])


def test_a_table_that_goes_on_beyond_the_edge_shows_it(page, tmp_path):
    found = look_at(page, 400, tmp_path)
    assert found["wide"] == found["shaded"] >= 3


def test_what_sticks_out_is_found(tmp_path):
    page = tmp_path / "wide.html"
    texts = '<text x="0" y="20">one</text><text x="2" y="22">two</text>'
    chart = f'<svg class="chart" viewBox="0 0 100 50" width="100">{texts}</svg>'
    page.write_text(f'<!DOCTYPE html><div style="width:500px">wide</div>{chart}')
    found = look_at(page, 390, tmp_path)
    assert found["scrolls"]
    assert "wide" in found["out"][0]
    assert found["over"] == ["one on two"]

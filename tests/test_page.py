"""Reports from Markdown files: what fills their holes, what is left out."""

import re

import pandas as pd
import pytest
from matplotlib.figure import Figure

from experiments.harness.reporting import page
from experiments.harness.reporting.report import Report

TEXT = """# Speed{mark}

On {machine[name]}; errors below
{limit:.1e}.

## First{mark}

Some words
over lines.

{tables}

[Numbers of {machine[name]}](in_words "{limit:g}
of nothing")

![Lower, {mark}is better.](plot)

### Inner

{words}

<details> Behind {machine[name]}

{folded}

</details>

## Second

Words of a part that did not run.

{missing}

![Nothing.](no_plot)

## Third

No hole but {limit:g}.
"""


def table(name):
  frame = pd.DataFrame({"x": [1, 2]})
  return page.table("Numbers", frame, measured_on="nothing", name=name)


@pytest.fixture
def values():
  return {
    "mark": " (tiny)",
    "machine": {"name": "a CPU"},
    "limit": 0.125,
    "tables": [table("a"), None, table("b")],
    "in_words": page.Table(pd.DataFrame({"y": [0.5]}), {"y": 3}),
    "plot": Figure(),
    "words": ["One `sentence`.", "Another."],
    "folded": "Hidden.",
    "missing": None,
    "no_plot": None,
  }


def blocks(text):
  """Tag and text of headings, paragraphs and captions, in order."""
  found = re.findall(r"<(h1|h2|h3|p|figcaption)(?: [^>]*)?>(.*?)</\1>", text)
  return [(tag, words) for tag, words in found if "Measured" not in words]


def test_a_page_is_its_file_with_the_holes_filled(tmp_path, values):
  path = tmp_path / "report.md"
  path.write_text(TEXT)
  report = page.begin(path, **values)
  text = report.write(tmp_path / "report.html").read_text()
  assert blocks(text) == [
    ("h1", "Speed (tiny)"),
    ("p", "On a CPU; errors below 1.2e-01."),
    ("h2", "First (tiny)"),
    ("p", "Some words over lines."),
    ("figcaption", "Lower,  (tiny)is better."),
    ("h3", "Inner"),
    ("p", "One <code>sentence</code>."),
    ("p", "Another."),
    ("p", "Hidden."),
    ("h2", "Third"),
    ("p", "No hole but 0.125."),
  ]
  names = re.findall(r'<table id="([\w-]+)"', text)
  assert names == ["a", "b", "in-words"] and text.count("<figure>") == 1
  assert "<caption>Numbers of a CPU</caption>" in text and ">0.500<" in text
  assert "Measured on: 0.125 of nothing" in text
  assert text.index('id="b"') < text.index("<figure>")
  folded = (
    "<details><summary>Behind a CPU</summary>\n<p>Hidden.</p>\n</details>"
  )
  assert folded in text


def test_tables_and_pictures_scroll_in_frames_of_their_own(tmp_path):
  """A phone shows what is wide; the first column stays where it is."""
  report = Report("Title", "Summary.")
  table("a")(report)
  page.figure(Figure(figsize=(6, 4)), "Small.")(report)
  page.figure(Figure(figsize=(9, 4)), "Wide.")(report)
  text = report.write(tmp_path / "report.html").read_text()
  assert text.count('<div class="scroll"><table ') == 1
  framed = re.findall(r'<div class="scroll"><img class="(\w+)"', text)
  assert framed == ["narrow", "wide"]
  kept = r"th:first-child, td:first-child \{ position: sticky; left: 0;"
  assert re.search(kept, text)


def test_photographs_are_embedded_as_such(tmp_path):
  path = tmp_path / "pages.md"
  path.write_text("![Faces.](faces)\n\n![Lines.](lines)\n")
  report = Report("Title", "Summary.")
  page.add(report, path, faces=page.Photographs(Figure()), lines=Figure())
  text = report.write(tmp_path / "report.html").read_text()
  assert re.findall(r"data:image/(\w+)", text) == ["jpeg", "png"]


def test_best_entries_are_marked_by_column_or_one_by_one(tmp_path):
  report = Report("Title", "Summary.")
  frame = pd.DataFrame({"x": [1.0, 2.0], "y": [3.0, 4.0], "z": [5.0, 6.0]})
  best = {"x": "min", "y": [False, True]}
  report.table("t", frame, measured_on="nothing", name="t", best=best)
  text = report.write(tmp_path / "report.html").read_text()
  marked = re.findall(r'<td class="number best" data-value="([\d.]+)"', text)
  assert marked == ["1.0", "4.0"]


def test_a_file_is_added_to_a_report_that_is_there(tmp_path, values):
  path = tmp_path / "pages.md"
  path.write_text("### Here\n\n{tables}\n")
  report = Report("Title", "Summary.")
  report.section("Part")
  page.add(report, path, **values)
  text = report.write(tmp_path / "report.html").read_text()
  assert [words for _, words in blocks(text)] == [
    *("Title", "Summary.", "Part", "Here")
  ]


def test_a_hole_without_a_value_is_an_error(tmp_path, values):
  path = tmp_path / "pages.md"
  path.write_text("## Part\n\n{unknown}\n")
  with pytest.raises(KeyError, match="unknown"):
    page.add(Report("Title", "Summary."), path, **values)

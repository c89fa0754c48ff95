"""Equal tuning: which run every committed row is of, as its page tells it."""

import csv
import hashlib
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
ROOM = ROOT / "experiments/equal_tuning"


def _kind(row):
  """What a line of the table tells apart: method, budget, chains."""
  chains = "one" if row["chains"] == "1" else "means"
  return row["method"], row["evaluations"], chains


def _place(row):
  kernel = row["kernel"]
  return f"{row['task']}:{kernel}" if kernel else row["task"]


def test_every_row_is_of_one_line_and_as_it_was_then():
  """A row that another run replaces needs another line."""
  text = (ROOM / "rows.csv").read_text().splitlines()
  rows = list(zip(csv.DictReader(text), text[1:], strict=True))
  counted = 0
  page = (ROOT / "docs/benchmarks/tuned_alike.md").read_text()
  for line in csv.DictReader((ROOM / "row_runs.csv").open()):
    kind = line["method"], line["evaluations"], line["chains"]
    tasks = line["tasks"].split()
    own = [
      words
      for row, words in rows
      if _kind(row) == kind and (not tasks or _place(row) in tasks)
    ]
    found = hashlib.sha256("\n".join(own).encode()).hexdigest()[:8]
    assert (str(len(own)), found) == (line["rows"], line["sha256"]), line
    # Where the page does not tell the runs apart neither does the table.
    assert bool(line["commit"]) == bool(line["device"])
    assert f"at commit\n  {line['commit']}" in page or (
      f"at commit {line['commit']}" in page
    ), line
    counted += len(own)
  assert counted == len(rows)

"""What the site takes from README, so that each stands in one place only.

README's accuracy table and picture are written by `experiments.readme`. This
hook of MkDocs puts the table in the place of a line that ends with
`<!-- README_TABLE -->`; on GitHub that line is a link to README. It adds the
picture to the site's files as `figures/restoration.jpg`, and beside it
`figures/plane.png`, which `experiments.equal_tuning.page` writes.
"""

import pathlib
import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parents[1]
PICTURES = ("restoration.jpg", "plane.png")
MARK = re.compile(r"^.*<!-- README_TABLE -->$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
  """Called by MkDocs with the files of the site."""
  for name in PICTURES:
    source = str(ROOT / "notebooks/figures" / name)
    files.append(File.generated(config, f"figures/{name}", abs_src_path=source))
  return files


def on_page_markdown(markdown: str, **_: Any) -> str:
  """Called by MkDocs with the source of each page."""
  return MARK.sub(lambda _: _table((ROOT / "README.md").read_text()), markdown)


def _table(readme: str) -> str:
  """The first table between README's two comments about the quickstart."""
  block = readme.split("<!-- quickstart:")[1].split("<!-- end of quickstart")[0]
  found = re.search(r"(?:^\|.*\n)+", block, re.MULTILINE)
  if found is None:
    raise ValueError("README.md has no table between its quickstart comments")
  return found[0]

"""Where code in a table may break: at its joints, not inside its words.

This hook of MkDocs puts `<wbr>` after slashes, dots, underscores and the like;
`stylesheets/site.css` lets lines break there.
"""

import re
from typing import Any

_CELL = re.compile(r"<td[^>]*>.*?</td>", re.DOTALL)
_CODE = re.compile(r"(<code>)([^<]*)(</code>)")
# Neither before an ending such as .py nor after the dot of .npy.
_JOINT = re.compile(r"(::|(?<=\w)(?:[/_,(=](?=\w)|\.(?=\w{4})))")
_FLAG = re.compile(r"--\w+")


def on_page_content(content: str, **_: Any) -> str:
  """Called by MkDocs with the HTML of each page."""
  return _CELL.sub(lambda cell: _CODE.sub(_jointed, cell[0]), content)


def _jointed(match: re.Match[str]) -> str:
  opening, words, closing = match.groups()
  words = _JOINT.sub(r"\1<wbr>", words)
  # Browsers also break after hyphens.
  words = _FLAG.sub(r'<span class="whole">\g<0></span>', words)
  return f"{opening}{words}{closing}"

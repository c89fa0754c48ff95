"""Where code may break: in a table at its joints, a command between its words.

This hook of MkDocs puts `<wbr>` after slashes, dots, underscores and the like
of code in tables, and keeps flags whole, there and in shell commands;
`stylesheets/site.css` lets lines break there.
"""

import re
from typing import Any

_CELL = re.compile(r"<td[^>]*>.*?</td>", re.DOTALL)
_CODE = re.compile(r"(<code>)([^<]*)(</code>)")
# Neither before an ending such as .py nor after the dot of .npy.
_JOINT = re.compile(r"(::|(?<=\w)(?:[/_,(=](?=\w)|\.(?=\w{4})))")
_FLAG = re.compile(r"--\w+")
_COMMANDS = re.compile(r'<div class="language-bash.*?</div>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
  """Called by MkDocs with the HTML of each page."""
  content = _CELL.sub(lambda cell: _CODE.sub(_jointed, cell[0]), content)
  return _COMMANDS.sub(lambda block: _whole(block[0]), content)


def _jointed(match: re.Match[str]) -> str:
  opening, words, closing = match.groups()
  words = _JOINT.sub(r"\1<wbr>", words)
  return f"{opening}{_whole(words)}{closing}"


def _whole(words: str) -> str:
  # Browsers also break after hyphens.
  return _FLAG.sub(r'<span class="whole">\g<0></span>', words)

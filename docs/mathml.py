"""Formulas as MathML at build time: the site needs no script and no network.

`pymdownx.arithmatex` marks what stands between dollar signs; this hook of
MkDocs translates it. A formula that cannot be translated stops the build.
"""

import html
import re
from typing import Any

from latex2mathml import converter

_MARKED = re.compile(
  r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL
)


def on_page_content(content: str, **_: Any) -> str:
  """Called by MkDocs with the HTML of each page."""
  return _MARKED.sub(_translated, content)


def _translated(match: re.Match[str]) -> str:
  tag, opening, latex = match.groups()
  display = "block" if opening == "[" else "inline"
  formula = converter.convert(html.unescape(latex).strip(), display=display)
  return f'<{tag} class="formula">{formula}</{tag}>'

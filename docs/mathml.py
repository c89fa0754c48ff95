r"""Formulas as MathML at build time: the site needs no script and no network.

`pymdownx.arithmatex` marks what stands between dollar signs; this hook of
MkDocs translates it. A formula that cannot be translated stops the build. What
`\qquad` parts in a displayed formula goes below each other on a phone.
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
  parts = html.unescape(latex).split(r"\qquad")
  formulas = [converter.convert(x.strip(), display=display) for x in parts]
  return f'<{tag} class="formula">{"".join(formulas)}</{tag}>'

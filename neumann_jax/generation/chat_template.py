"""Chats as a checkpoint's Jinja template writes them, in a sandbox.

A template is a program of whoever made the checkpoint: it sees the messages and
the names below, changes no object, and reaches no attribute of Python's.
"""

import datetime
import functools
import json
import re
import secrets
from typing import Any

from neumann_jax.foreign_files.messages import clean

# Stands around what a model is to write. Drawn anew in every process, so that
# no message can hold it.
_MARK = re.compile(f"mark-{secrets.token_hex(16)}")


def render(template: str, **variables: Any) -> str:
  """The text that a template makes of its variables.

  Args:
    template: Jinja, as transformers reads it: loop controls, `tojson`,
      `raise_exception`, `strftime_now`, `{% generation %}`.
    **variables: messages, add_generation_prompt, tools, ...

  Raises:
    ImportError: if there is no package jinja2.
    ValueError: if the template is none, does what it may not, or refuses the
      messages.
  """
  return render_marked(template, **variables)[0]


def render_marked(
  template: str, **variables: Any
) -> tuple[str, list[tuple[int, int]]]:
  """The text, and where in it stand the parts that a model is to write.

  Args:
    template: as for `render`.
    **variables: as for `render`.

  Returns:
    The text, and the start and end of what is between `{% generation %}` and
    `{% endgeneration %}`, in their order; none where the template has no such
    marks.

  Raises:
    ImportError: as `render`.
    ValueError: as `render`.
  """
  _package()
  try:
    written = _compiled(template).render(**variables)
  # A template is a stranger's program: it may also have no attribute, ask for
  # more memory than there is, or become Python that does not compile.
  except Exception as error:
    words = str(error) or type(error).__name__
    # The first sentence: what jinja2 adds is about itself.
    reason = " ".join(words.split()).split(". ")[0].rstrip(".")
    raise ValueError(
      f"the chat template says: {clean(reason, most=200)}"
    ) from error
  text, spans = "", []
  for number, part in enumerate(_MARK.split(written)):
    if number % 2:
      spans.append((len(text), len(text) + len(part)))
    text += part
  return text, spans


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
  return _environment().from_string(template)


def _environment() -> Any:
  jinja2 = _package()

  class Generation(jinja2.ext.Extension):  # type: ignore[name-defined]
    """`{% generation %}`: marks an answer for training; its text stays."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's name and kind)

    def parse(self, parser: Any) -> Any:
      """A call, with the statements up to the end of the mark as its block."""
      line = next(parser.stream).lineno
      body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
      call = self.call_method("between")
      return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def between(self, caller: Any) -> str:
      """What the block writes, between marks."""
      return f"{_MARK.pattern}{caller()}{_MARK.pattern}"

  # Trimmed as by transformers: templates are written for that, and a blank more
  # is another token.
  found = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[Generation, jinja2.ext.loopcontrols],
  )
  found.filters["tojson"] = _to_json
  found.globals["raise_exception"] = _refuse
  found.globals["strftime_now"] = _now
  return found


def _to_json(
  x: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  # Jinja's own escapes < and > for HTML, which are parts of tokens here.
  return json.dumps(
    x,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


def _refuse(message: str) -> None:
  raise _package().TemplateError(message)


def _now(form: str) -> str:
  return datetime.datetime.now().strftime(form)


def _package() -> Any:
  try:
    import jinja2
    import jinja2.ext
    import jinja2.sandbox
  except ImportError as error:
    raise ImportError(
      "a chat template needs the package jinja2: pip install "
      "'neumann-posterior[hf]'"
    ) from error
  return jinja2

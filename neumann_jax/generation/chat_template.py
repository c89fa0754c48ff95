"""Chats as a checkpoint's Jinja template writes them, in a sandbox.

A template is a program of whoever made the checkpoint: it sees the messages and
the names below, changes no object, and reaches no attribute of Python's.
"""

import datetime
import functools
import json
from typing import Any

from neumann_jax.foreign_files.messages import clean

# What expressions of a template may raise.
_PYTHONS = (TypeError, ValueError, ArithmeticError, LookupError, RecursionError)


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
  jinja2 = _package()
  try:
    return _compiled(template).render(**variables)
  except (jinja2.TemplateError, *_PYTHONS) as error:
    # The first sentence: what jinja2 adds is about itself.
    reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
    raise ValueError(
      f"the chat template says: {clean(reason, most=200)}"
    ) from error


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
  return _environment().from_string(template)


def _environment() -> Any:
  jinja2 = _package()

  class Generation(jinja2.ext.Extension):  # type: ignore[name-defined]
    """`{% generation %}`: marks an answer for training; its text stays."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's name and kind)

    def parse(self, parser: Any) -> Any:
      """The statements up to the end of the mark."""
      next(parser.stream)
      return parser.parse_statements(["name:endgeneration"], drop_needle=True)

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

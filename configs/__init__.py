"""One file an experiment; `get_config()` says what it runs."""

import pathlib


def is_debug(form: str, file: str, known: tuple[str, ...] = ("debug",)) -> bool:
  """Whether a config is asked for in its form for tests, "debug".

  Args:
    form: what stands behind the colon of `--config=FILE:FORM`, "" for nothing.
    file: of the config.
    known: the forms that it has beside "".

  Returns:
    Whether form is "debug".

  Raises:
    ValueError: it has no such form.
  """
  if form not in ("", *known):
    words = "form" if len(known) == 1 else "forms"
    raise ValueError(
      f"configs/{pathlib.Path(file).name} has the {words} "
      f"{' and '.join(known)}, not {form!r}"
    )
  return form == "debug"

"""The tables of equal tuning as Markdown and a picture, of committed rows."""

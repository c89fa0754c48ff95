"""Data that ships with the package; see the experiment named in each file."""

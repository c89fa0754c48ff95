"""How fast whole models train, read a prompt and write, with random weights.

`shapes` makes the published architectures and their weights, `passes` what is
timed and what it cannot do without, `study` measures and writes the report.
"""

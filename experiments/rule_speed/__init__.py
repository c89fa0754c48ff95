"""How fast, how large and how exact the whole delta rule is, beside others'.

`problems` draws operands and takes the float64 recurrence of them, `contenders`
are the rules, ours and other people's, `study` measures and prints.
"""

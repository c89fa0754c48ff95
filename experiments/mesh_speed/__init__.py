"""What a mesh of devices gives a training step, on however many there are.

`probe` is the model, its step and how a mesh runs it, `profile` says what a
step waited for, `study` measures and prints.
"""

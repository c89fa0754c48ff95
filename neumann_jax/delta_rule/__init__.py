"""The gated delta rule: by chunks, token by token, and over a mesh axis.

`api` is the public door; `inputs` checks what comes in, `layout` cuts it into
chunks, `wy` takes u and w from the chunk inverse, `chunk_scan` carries the
state from chunk to chunk; `hopper_rule` is all of that, and its derivative, in
kernels of a Hopper GPU; `recurrent` is the rule token by token and one step
of it, `sequence_parallel` the rule with its tokens split over devices.
"""

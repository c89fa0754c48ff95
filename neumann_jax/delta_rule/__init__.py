"""The gated delta rule: by chunks, token by token, and over a mesh axis.

`api` is the public door and the way of a call; `options` says how it is
computed, `inputs` what is accepted, `precision` in which types. `layout` cuts
operands into chunks and `gates` weighs them; `chunk_matrix` builds A,
`intra_chunk` inverts it and takes all that needs no state, `chunk_scan` carries
the state from chunk to chunk. `wy` is u and w in one kernel, `hopper_rule` all
of the rule, and its derivative, in kernels of a Hopper GPU, `tpu_rule` in those
of a TPU. `document_states` moves packed documents apart where each has a state
of its own.

`recurrent` is the rule token by token and one step of it; `sequence_parallel`
is the rule with its tokens split over devices, by `columns` that read and move
the state of a shard, `on_mesh` with rows and heads.
"""

"""The gated delta rule: by chunks, token by token, and over a mesh axis.

`api` is the public door, `by_chunks` the way of a call behind it; `options`
says how it is computed, `inputs` what is accepted, `precision` in which types.
`layout` cuts operands into chunks and `gates` weighs them; `chunk_matrix`
builds A, `intra_chunk` inverts it and takes all that needs no state,
`chunk_scan` carries the state from chunk to chunk. `wy` is u and w in one
kernel; that and the scan's are in the room `kernels`. The rooms `hopper` and
`tpu` hold all of the rule, and its derivative, in kernels of a Hopper GPU and
of a TPU. `document_states` moves packed documents apart where each has a state
of its own.

`recurrent` is the rule token by token and one step of it, `one_token` that step
for many rows; `sequence_parallel` is the rule with its tokens split over
devices, by `columns` that read and move the state of a shard and `shard_maps`
that say what a shard does to one, `on_mesh` with rows and heads.
"""

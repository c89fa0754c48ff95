"""The gated delta rule on a Hopper GPU, forward and backward, in kernels.

`rule` says where they run and differentiates them,
`sequence_parallel.hopper_shards` does so for tokens split over devices;
`passes` is what either launches. `pieces` cuts a row where its state is
forgotten. The kernels: `scan` from chunk to chunk and `reverse` the same for
cotangents, each with a program for narrow and for wide keys, to which `scores`
gives P; `gradients` of every chunk at once, whose warpgroups are in
`gradient_parts`. What they share is in `tiles`, what both programs of `reverse`
do in `cotangent_walk`, and what both for wide keys do in `single_buffers`.
"""

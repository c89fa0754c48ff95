"""T = (I + A)^-1 of a chunk, by matrix products alone.

`api` is the public door, `gradient` the derivatives and the table of kernels.
`inverse_spec` says which method in which arithmetic and `spec_names` how that
is written; `methods` computes it on `tiles`, `xla` runs that body in plain XLA
and `kernels` in Pallas. `integer` has the integer operands, `products` the
products of a spec in XLA, `masks` what a band, a block and a decay keep,
`bounds` what is provable of the error, `planner` the cheapest spec within a
tolerance.
"""

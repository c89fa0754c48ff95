"""T = (I + A)^-1 of a chunk, by matrix products alone.

`inverse_spec` names a method and its arithmetic, `methods` computes it on
`tiles`, `xla` runs that body in plain XLA and `kernels` in Pallas; `api` is the
public door with its gradient. `integer` has the integer operands, `products`
the products of a spec in XLA, `bounds` what is provable of the error, `planner`
the cheapest spec within a tolerance.
"""

"""Oracles and tolerances of the test suite, each argued once.

Problem builders and closed forms live here in float64; a section per concern.
"""

# --- Chunk inverse -----------------------------------------------------------
# Relative Frobenius errors of the strictly lower part, worst over the families
# of experiments/key_families.py.

# Float32 at highest precision: products of at most 128 terms whose result is
# bounded by the envelope; measured 2e-7, stated 2e-6 by the design.
FLOAT32_INVERSE = 2e-6

# The design's table for the ladder at C = 64, beta <= 1 (keyed by `refine`):
# operands rounded, float32 sums, integers with a dynamic scale. Tests allow
# twice these.
DESIGN_TABLE = {
  0: {"bfloat16": 1e-2, "float16": 2e-3, "int8": 3e-2, "int16": 1e-4},
  1: {"bfloat16": 1e-4, "float16": 2e-6, "int8": 1e-3, "int16": 2e-7},
}
# The same for beta <= 2.
DESIGN_TABLE_BETA_2 = {
  "float32": 1e-6,
  "bfloat16": 2e-2,
  "float16": 3e-3,
  "int8": 1e-1,
  "int16": 4e-4,
}
# One scale for all entries, from the envelope (design: 5e-2 for INT8, beta <=
# 1). 16 bits have 257 times finer codes; the scale doubles with beta <= 2.
# Tests allow twice these.
ENVELOPE_INVERSE = {8: 5e-2, 16: 5e-2 / 257}

"""Noise-frequency continuation: a sampler composed of parts.

`config` has the settings, `levels` what they mean level by level; `bands` says
which frequencies speak, `likelihood` moves an image towards the measurement,
`refinement` joins the two at one level, `jacobian` and `inflation` give the
width of the tie, `fusion` adopts coarse corrections fully and fine ones late;
`sampler` composes them.
"""

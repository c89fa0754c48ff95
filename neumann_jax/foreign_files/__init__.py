"""Files that strangers made, read with a budget: the one place that does.

`neumann_jax` and `posterior_jax` never import each other, yet both read weights
and manifests of others. What keeps that safe is written once and is a room of
both: `posterior_jax/foreign_files` is a link to this folder, whose modules
import each other by relative names alone. SECURITY.md says what is promised.

`folder` knows which files belong to a folder, `json_file`, `tensor_file`,
`array_file` and `picture_file` read one format each, `messages` says what a
message may repeat of a file, and `hushed` keeps from the terminal what other
libraries say of one. Sizes come first: nothing is built or decoded that is
larger than its file accounts for.
"""

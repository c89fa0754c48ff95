"""A whole decoder layer's step of one row as one kernel of a GPU.

`row_layer` runs it, and `row_weights` takes what it reads from the modules of
the layer.
"""

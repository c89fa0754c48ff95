"""The rule of one device by chunks, from A to the scan over their states.

`by_chunks` is the way of a call. `chunk_matrix` builds A, `intra_chunk` inverts
it and takes all that needs no state, `chunk_scan` carries the state from chunk
to chunk; `wy` is u and w in one kernel. `document_states` moves packed
documents apart where each has a state of its own.
"""

"""What a step of decoding computes of one token, part by part.

`row_products` has the products of a block with its weights; `token_step` what
lies between those of a Gated DeltaNet block, `attention_token` between those of
full attention. Each is what a kernel computes and, in XLA, what it must equal.
"""

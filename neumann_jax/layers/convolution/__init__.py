"""The short causal convolution of q, k and v, and that of packed documents."""

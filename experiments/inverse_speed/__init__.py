"""Times the chunk inverse on a GPU beside a copy of its bytes, XLA and fla."""

"""Times a Gated DeltaNet layer on a GPU with each inverse, beside fla."""

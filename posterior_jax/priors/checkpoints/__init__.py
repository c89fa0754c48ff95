"""Published weights, read without running code of theirs."""

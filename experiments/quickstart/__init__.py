"""Both systems at work on a CPU, in one HTML report."""

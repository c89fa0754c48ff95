"""Images and samples of a picture: drawn step by step, and kept."""

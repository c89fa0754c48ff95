"""Other people's implementations, called the way their authors do."""

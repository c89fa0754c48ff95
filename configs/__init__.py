"""One file an experiment; `get_config()` says what it runs."""

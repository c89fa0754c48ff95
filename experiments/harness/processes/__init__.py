"""Processes and threads of a run: how they meet, are stopped and speak."""

"""What a device runs: a program for all points of a method, and its solves."""

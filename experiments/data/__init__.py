"""What experiments read: photographs, text, keys, tasks, degradations."""

"""Dead leaves: shapes that occlude one another, after VibrantLeaves."""

"""Where continuation by bands helps: expected errors in closed form."""

"""distloop."""

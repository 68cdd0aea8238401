"""All stages once, on the built-in micro world."""

"""What a backbone is worth: where it leans on texture, background and context."""

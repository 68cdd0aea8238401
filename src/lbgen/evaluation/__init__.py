"""What a backbone is worth: how it transfers to other data sets, and where it leans on texture and context."""

"""What a generation run says of itself."""

"""What describes a finished dataset: card, Croissant metadata, sample pictures."""

"""The files that describe a finished dataset: card, Croissant metadata, sample pictures."""

"""The independence term: what an image shows besides its category says nothing of the category."""

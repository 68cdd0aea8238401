"""The independence term: what an image shows besides its category should not depend on the category."""

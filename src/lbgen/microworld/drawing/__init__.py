"""What the renderer draws with: the shapes of objects, and backgrounds."""

"""The elements that the renderer draws: shapes of objects, and backgrounds."""

"""Pages and figures for people: one self-contained HTML file, nothing loaded from a network."""

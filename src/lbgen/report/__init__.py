"""Pages and figures: self-contained HTML files that load nothing from a network."""

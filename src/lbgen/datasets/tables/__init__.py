"""Tables with an image column, in Parquet or Arrow files."""

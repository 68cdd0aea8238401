"""The whole street, once, on the embedded micro world."""

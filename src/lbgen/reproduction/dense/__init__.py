"""Detection and segmentation of renders: sets with known masks, and what a backbone is worth on them."""

"""Detection and segmentation of renders: sets with known masks, and the evaluation of backbones on them."""

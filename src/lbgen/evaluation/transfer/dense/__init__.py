"""Detection and segmentation: what a backbone is worth where a model says where things are in an image."""

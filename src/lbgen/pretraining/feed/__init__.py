"""From dataset folders to batches: the catalogue of images, their order, and their augmentation."""

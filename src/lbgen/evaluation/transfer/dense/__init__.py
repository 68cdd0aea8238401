"""Transfer of backbones to dense prediction: detection and segmentation."""

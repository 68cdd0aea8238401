"""The paper's tables at small scale, on the micro world: sets of images, backbones trained on them, their values."""

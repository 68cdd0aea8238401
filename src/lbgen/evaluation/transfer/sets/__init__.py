"""The downstream data sets: their locations, their division, and the images that are left out."""

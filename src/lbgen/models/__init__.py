"""All models, behind small interfaces: generators, semantic spaces, quality scorers and backbones."""

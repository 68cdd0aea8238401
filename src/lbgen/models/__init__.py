"""Everything with weights, behind small interfaces: generators, semantic spaces and quality scorers."""

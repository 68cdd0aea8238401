"""Renders of the micro world as sets in COCO's and ADE20K's format."""

import pytest
from dense_sets import write_ade, write_coco


@pytest.fixture(scope="session")
def coco(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("coco") / "coco")


@pytest.fixture(scope="session")
def ade(tmp_path_factory):
    return write_ade(tmp_path_factory.mktemp("ade") / "ade")

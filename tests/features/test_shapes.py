"""Caches of images whose features differ in size with their shape."""

import io
from dataclasses import replace

import pytest
from PIL import Image

from tests.features.test_build import SHARD, make
from tests.models import bagel_tiny
from tests.toy_model import Pictures


@pytest.mark.parametrize("shard_bytes", [SHARD, 10**6])
def test_images_of_several_shapes_have_no_cache_where_their_features_differ(tmp_path, shard_bytes):
    """BAGEL reads a wide image as more patches; the same in one shard or in two."""

    class Wide(Pictures):
        def __getitem__(self, position):
            size = (32, 16) if position % 2 else (16, 16)
            stream = io.BytesIO()
            Image.new("RGB", size, (position, 0, 0)).save(stream, "PNG")
            return replace(super().__getitem__(position), image=stream.getvalue())

    reader = bagel_tiny.model(tmp_path / "words")
    with pytest.raises(ValueError, match="give images of one shape, or leave out the task"):
        make(tmp_path / "c", reader, Wide(4), use="read", batch_size=1, shard_bytes=shard_bytes)
    assert not (tmp_path / "c").exists()

"""A cache is built so that a GPU computes one batch while the host prepares the next."""

import torch

from reca.core.images import decode
from reca.features.build import Encoder, build
from tests.toy_model import CODE, DrawingToy, Pictures


def test_a_batch_is_begun_before_the_one_before_is_awaited(tmp_path, monkeypatch):
    calls, begun, fetched = [], Encoder.begun, Encoder.fetched
    monkeypatch.setattr(
        Encoder, "begun", lambda self, images: calls.append("begin") or begun(self, images)
    )
    monkeypatch.setattr(
        Encoder, "fetched", lambda self, *given: calls.append(given[1]) or fetched(self, *given)
    )
    model, dataset = DrawingToy(), Pictures(10)
    cache = build(model, dataset, tmp_path / "c", use="draw", code=CODE, batch_size=2)
    calls = calls[2:]  # the first image gives a row's size
    of_rows = [call for call in calls if call != "begin"]
    assert calls[:5] == ["begin", "begin", of_rows[0], "begin", of_rows[1]]
    assert [name for names in of_rows for name in names] == [one.id for one in dataset]
    direct = model.encode([decode(one.image, name=one.id) for one in dataset], "draw")
    rows = cache.rows(range(10))
    assert all(torch.equal(rows[name], direct[name]) for name in direct)

"""What `reca profile` makes of a GPU's events; real steps on a CPU are profiled in test_published.py."""

from itertools import count

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent

from reca.align import profile, trainer

STEP = 9500  # microseconds


def events():
    """A step as Kineto gives it: 3 ms of kernels started in the forward pass and 6 ms in the backward one.

    The span of the forward pass has an annotation on the device, and each kernel is an event of its own.
    """
    number = count(1)

    def event(name, start, stop, device=DeviceType.CPU, annotation=False, thread=1):
        return FunctionEvent(
            id=next(number),
            name=name,
            thread=thread,
            start_us=start,
            end_us=stop,
            use_device="cuda",
            device_type=device,
            is_user_annotation=annotation,
            input_shapes=[],
            stack=[],
        )

    spans = [trainer.SPAN + part for part in ("forward", "backward")]
    product, gradient = event("aten::mm", 100, 200), event("aten::mm", 1100, 1200, thread=2)
    product.append_kernel("gemm", 0, 3000.0)
    gradient.append_kernel("gemm", 0, 6000.0)
    found = [
        event(spans[0], 0, 1000, annotation=True),
        product,
        event(spans[0], 150, 3150, DeviceType.CUDA, annotation=True),
        event("gemm", 150, 3150, DeviceType.CUDA),
        event(spans[1], 1000, 2000, annotation=True),
        gradient,
        event("gemm", 3150, 9150, DeviceType.CUDA),
    ]
    found.sort(key=lambda one: (one.time_range.start, -one.time_range.end))
    made = EventList(found, use_device="cuda")
    made._build_tree()
    return made.key_averages()


def test_kernels_count_once_and_parts_have_their_time_on_the_host():
    found = profile.summed(events(), 1, STEP * profile.MICRO, torch.device("cuda"))
    assert found.host["forward"] == pytest.approx(1e-3)
    assert found.host["backward"] == pytest.approx(1e-3)
    assert found.on_device["forward"] == pytest.approx(3e-3)
    assert found.on_device["backward"] == pytest.approx(6e-3)
    (product,) = (one for one in found.operations if one.device)
    assert (product.name, product.calls) == ("aten::mm", 2)
    assert product.device == pytest.approx(9e-3)
    shown = "\n".join(profile.described(found))
    assert "94.7%" in shown and "gemm" not in shown  # by operation; the kernels are in the trace

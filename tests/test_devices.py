"""Accelerators that are not here, by what torch and Ray would say of them."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ctxext.errors import UsageError
from ctxext.measure import memory, meter
from ctxext.models.loading import Source, pick_device, settle


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Two XPUs of 100 bytes each; grows by what is asked of them."""
    asked = list[Any]()
    there: dict[str, Any] = {
        "current_accelerator": lambda check_available=False: torch.device("xpu"),
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "reset_peak_memory_stats": lambda number: asked.append(("reset", number)),
        "max_memory_allocated": lambda number: 100,
        "synchronize": lambda device: asked.append(("synchronize", device)),
        "empty_cache": lambda: asked.append("empty"),
    }
    for name, answer in there.items():
        monkeypatch.setattr(torch.accelerator, name, answer)
    return asked


def test_auto_is_the_accelerator_that_torch_has(
    accelerator: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pick_device("auto") == "xpu"
    config = SimpleNamespace(dtype="float16", get_text_config=lambda: config)
    monkeypatch.setattr("ctxext.models.loading._takes_sdpa", lambda _: True)
    settled = settle(Source("x"), config)
    assert (settled.device, settled.dtype, settled.attn) == ("xpu", "float16", "sdpa")
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available=False: None
    )
    assert pick_device("auto") == "cpu"


def test_memory_of_an_accelerator_is_what_torch_counts_there(
    accelerator: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = meter.Meter("xpu:0").read
    assert accelerator == [("reset", 0), ("reset", 1)]
    assert read()["peak_memory_bytes"] == 200
    model = SimpleNamespace(device=torch.device("xpu"))
    assert memory.allocated_peak(model, lambda: accelerator.append("call")) == 200
    assert accelerator[-2:] == ["call", ("synchronize", torch.device("xpu"))]
    memory.release()
    assert accelerator[-1] == "empty"

    def uncounted(number: int) -> int:  # as of MPS
        raise RuntimeError("Allocator for mps is not a DeviceAllocator.")

    monkeypatch.setattr(torch.accelerator, "reset_peak_memory_stats", uncounted)
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", uncounted)
    assert meter.Meter("mps").read()["peak_memory_bytes"] is None


@pytest.mark.skipif(sys.platform == "win32", reason="no getrusage")
def test_resident_memory_without_proc_is_of_the_whole_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import resource

    before = memory.resident_peak()
    assert before is not None
    monkeypatch.setattr(memory, "_resident", lambda _: None)
    life = memory.resident_peak()
    assert life is not None
    assert life >= before * 0.9  # the two are counted apart, some pages late
    usage = SimpleNamespace(ru_maxrss=7)
    monkeypatch.setattr(resource, "getrusage", lambda _: usage)
    for system, unit in (("darwin", 1), ("linux", 1024)):
        monkeypatch.setattr(sys, "platform", system)
        assert memory.resident_peak() == 7 * unit
    monkeypatch.setitem(sys.modules, "resource", None)
    assert memory.resident_peak() is None


@pytest.mark.parametrize(
    ("device", "spread", "gpus"), [("cpu", None, 0), ("cuda", None, 1), ("cuda", "auto", 4)]
)
def test_a_task_of_ray_has_the_gpus_that_its_model_is_on(
    device: str, spread: str | None, gpus: int
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    from ctxext.measure.launch import Ray, _Jobs

    nodes = [{"Resources": {"GPU": 4.0}}, {"Resources": {"CPU": 8.0}}, {"Resources": {"GPU": 2.0}}]
    source = Source("x", device=device, device_map=spread)
    plan: Any = SimpleNamespace(source=source, request=SimpleNamespace(source=source))
    jobs: Any = SimpleNamespace(_ray=SimpleNamespace(nodes=lambda: nodes))
    assert _Jobs._gpus(jobs, plan) == gpus
    none: Any = SimpleNamespace(cluster_resources=dict)
    if device == "cpu":
        Ray()._check(none, plan)
    else:
        with pytest.raises(UsageError, match="Ray counts no GPU here"):
            Ray()._check(none, plan)

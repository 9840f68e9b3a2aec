"""What devices call themselves, and their peaks."""

from types import SimpleNamespace

import pytest

from instructrec_jax.distributed.chips import peak_flops


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("TPU v5 lite", 197),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H100 of a kind that is not known", None),
        ("cpu", None),
    ],
)
def test_peaks_go_by_the_whole_name(name: str, tera: float | None) -> None:
    found = peak_flops(SimpleNamespace(device_kind=name))
    assert found == (None if tera is None else tera * 1e12)

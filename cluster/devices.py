"""The GPUs that a plan can be made for: figures of their datasheets, dense (without sparsity)."""

from __future__ import annotations

from dataclasses import dataclass

GB, TERA = 10**9, 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU. Links are one way, as all-to-all uses both ways at once."""

    name: str
    title: str
    memory_bytes: int
    bandwidth: float  # bytes/s of its memory
    bf16_flops: float
    fp8_flops: float | None  # None: no FP8 units
    link: float  # bytes/s to the GPUs of its node: NVLink, or PCIe where there is none
    compute_share: float = 0.5  # of the datasheet's FLOPS, in large products: an assumption

    def flops(self, *, is_fp8: bool) -> float:
        """Of matrix products with weights of this format, per the datasheet."""
        return self.fp8_flops if is_fp8 and self.fp8_flops is not None else self.bf16_flops


DEVICES = {
    device.name: device
    for device in (
        Device(
            name="h20",
            title="NVIDIA H20 96 GB",  # datasheet: 96 GB HBM3, 4.0 TB/s, 148 TF BF16, 296 TF FP8, NVLink 900 GB/s
            memory_bytes=96 * GB,
            bandwidth=4.0 * TERA,
            bf16_flops=148 * TERA,
            fp8_flops=296 * TERA,
            link=450 * GB,
            compute_share=0.6,  # its memory outpaces its tensor cores, which therefore idle less
        ),
        Device(
            name="h100",
            title="NVIDIA H100 SXM 80 GB",  # datasheet: 3.35 TB/s, 1,979 / 3,958 TF with sparsity, NVLink 900 GB/s
            memory_bytes=80 * GB,
            bandwidth=3.35 * TERA,
            bf16_flops=989 * TERA,
            fp8_flops=1979 * TERA,
            link=450 * GB,
        ),
        Device(
            name="h200",
            title="NVIDIA H200 SXM 141 GB",  # datasheet: 4.8 TB/s HBM3e, tensor cores as H100 SXM, NVLink 900 GB/s
            memory_bytes=141 * GB,
            bandwidth=4.8 * TERA,
            bf16_flops=989 * TERA,
            fp8_flops=1979 * TERA,
            link=450 * GB,
        ),
        Device(
            name="h800",
            title="NVIDIA H800 SXM 80 GB",  # datasheet: as H100 SXM, NVLink 400 GB/s
            memory_bytes=80 * GB,
            bandwidth=3.35 * TERA,
            bf16_flops=989 * TERA,
            fp8_flops=1979 * TERA,
            link=200 * GB,
        ),
        Device(
            name="a100",
            title="NVIDIA A100 SXM 80 GB",  # datasheet: 2,039 GB/s, 312 TF BF16, no FP8, NVLink 600 GB/s
            memory_bytes=80 * GB,
            bandwidth=2.039 * TERA,
            bf16_flops=312 * TERA,
            fp8_flops=None,
            link=300 * GB,
        ),
        Device(
            name="l40s",
            title="NVIDIA L40S 48 GB",  # datasheet: 864 GB/s, 362 TF BF16, 733 TF FP8, PCIe 4.0 x16 (64 GB/s both ways)
            memory_bytes=48 * GB,
            bandwidth=0.864 * TERA,
            bf16_flops=362 * TERA,
            fp8_flops=733 * TERA,
            link=32 * GB,
        ),
    )
}

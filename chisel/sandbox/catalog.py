"""Hold what the embedded cloud offers: sizes, regions, images, in DigitalOcean's own shapes.

Slugs, prices and the odd entry (`available` with no region) are as the public price list and published API answers
showed them in autumn 2026; they are here to be discovered by a client, which must not know them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]

_CREATED_AT = "2026-06-01T12:00:00Z"
_FEATURES = ["backups", "ipv6", "metadata", "install_agent", "storage", "image_transfer"]


def _size(slug: str, description: str, vcpus: int, memory_gib: int, disk_gib: int, hourly: float, regions: str) -> Json:
    return {
        "slug": slug,
        "memory": memory_gib * 1024,
        "vcpus": vcpus,
        "disk": disk_gib,
        "transfer": 15.0,
        "price_monthly": round(hourly * 744, 2),
        "price_hourly": hourly,
        "regions": regions.split(),
        "available": True,
        "description": description,
        "disk_info": [{"type": "local", "size": {"amount": disk_gib, "unit": "gib"}}],
    }


def _gpu(size: Json, model: str, count: int, vram_gib: int, scratch_gib: int) -> Json:
    info = {"count": count, "model": model, "vram": {"amount": vram_gib, "unit": "gib"}}
    scratch = {"type": "scratch", "size": {"amount": scratch_gib, "unit": "gib"}}
    return {**size, "gpu_info": info, "disk_info": [*size["disk_info"], scratch]}


SIZES: tuple[Json, ...] = (
    _size("s-1vcpu-1gb", "Basic", 1, 1, 25, 0.00893, "nyc1 nyc2 nyc3 sfo3 tor1 atl1 fra1"),
    _size("s-2vcpu-4gb", "Basic", 2, 4, 80, 0.03571, "nyc1 nyc2 nyc3 sfo3 tor1 atl1 fra1"),
    _size("c-4", "CPU-Optimized", 4, 8, 50, 0.125, "nyc1 nyc3 sfo3 tor1 atl1 fra1"),
    _gpu(
        _size("gpu-mi300x1-192gb", "AMD MI300X GPU - 1X", 20, 240, 720, 1.99, "atl1 nyc2"), "amd_mi300x", 1, 192, 5120
    ),
    _gpu(
        _size("gpu-mi300x8-1536gb", "AMD MI300X GPU - 8X", 160, 1920, 2046, 15.92, "atl1"), "amd_mi300x", 8, 1536, 40960
    ),
    _gpu(_size("gpu-mi325x1-256gb", "AMD MI325X GPU - 1X", 20, 164, 720, 2.1, "nyc2 tor1"), "amd_mi325x", 1, 256, 5120),
    _gpu(_size("gpu-mi350x1-288gb", "AMD MI350X GPU - 1X", 24, 256, 720, 3.5, ""), "amd_mi350x", 1, 288, 5120),
    _gpu(_size("gpu-h100x1-80gb", "NVIDIA H100 GPU - 1X", 20, 240, 720, 3.39, "nyc2 tor1"), "nvidia_h100", 1, 80, 5120),
)

_REGION_NAMES = {
    "nyc1": "New York 1",
    "nyc2": "New York 2",
    "nyc3": "New York 3",
    "sfo3": "San Francisco 3",
    "tor1": "Toronto 1",
    "atl1": "Atlanta 1",
    "fra1": "Frankfurt 1",
}

REGIONS: tuple[Json, ...] = tuple(
    {
        "slug": slug,
        "name": name,
        "features": list(_FEATURES),
        "available": True,
        "sizes": [size["slug"] for size in SIZES if slug in size["regions"]],
    }
    for slug, name in _REGION_NAMES.items()
)


def _image(id: int, slug: str, name: str, distribution: str) -> Json:
    return {
        "id": id,
        "name": name,
        "type": "base",
        "distribution": distribution,
        "slug": slug,
        "public": True,
        # As published, the OpenAPI description (2026-08) knows no atl1 among the regions of an image.
        "regions": [slug for slug in _REGION_NAMES if slug != "atl1"],
        "created_at": _CREATED_AT,
        "min_disk_size": 25,
        "size_gigabytes": 12.5,
        "description": name,
        "tags": [],
        "status": "available",
    }


IMAGES: tuple[Json, ...] = (
    _image(198000001, "gpu-amd-base", "AMD AI/ML Ready (sandbox)", "Ubuntu"),
    _image(198000002, "ubuntu-24-04-x64", "24.04 (LTS) x64", "Ubuntu"),
    _image(198000003, "ubuntu-22-04-x64", "22.04 (LTS) x64", "Ubuntu"),
)


def find_size(slug: object) -> Json | None:
    """Return the size with this slug."""
    return next((size for size in SIZES if size["slug"] == slug), None)


def find_region(slug: object) -> Json | None:
    """Return the region with this slug."""
    return next((region for region in REGIONS if region["slug"] == slug), None)


def snapshot_image(id: int, name: str, region: str, created_at: str) -> Json:
    """Return the image that a droplet's snapshot is."""
    made = _image(id, "", name, "Ubuntu")
    regions = [slug for slug in made["regions"] if slug == region]
    own = {"type": "snapshot", "slug": None, "public": False, "regions": regions, "created_at": created_at}
    return {**made, **own, "min_disk_size": 720, "size_gigabytes": 31.4, "description": ""}


def find_image(name: object, private: Sequence[Json] = ()) -> Json | None:
    """Return the image with this slug or id, published or of the account."""
    known = (*IMAGES, *private) if name is not None else ()
    return next((image for image in known if name in (image["slug"], image["id"], str(image["id"]))), None)


def is_gpu(size: Json) -> bool:
    """Say whether droplets of this size are hidden from the default list."""
    return "gpu_info" in size

"""Make profiles such as droplets send, of any size, for the report's tests.

`python -m tests.profile.showpiece OUT.html` writes one to look at.
"""

from __future__ import annotations

import math
import random
import sys
from datetime import UTC, datetime
from pathlib import Path

from chisel.figures import (
    QUANTILES,
    SLICES,
    Comparison,
    Copies,
    Fingerprint,
    KernelStats,
    KernelVerdict,
    Launch,
    Part,
    ProfileResult,
    Ranking,
    Sample,
    Spread,
    Telemetry,
)
from chisel.profile.report import report_html

NAMES = [
    "void gemm_tn_bf16<128, 256, 64, 4>(Params<__hip_bfloat16>)",
    "flash_attention_fwd_d128_causal",
    "void at::native::vectorized_elementwise_kernel<8, at::native::SiluFunctor<c10::BFloat16>, char*>(int)",
    "Cijk_Ailk_Bljk_BBS_BH_Bias_HAS_SAV_UserArgs_MT256x224x64_MI16x16x1_SN_LDSB1_AFC1_AFEM1_AFEM1_ASEM1",
    "rms_norm_kernel<float, 1024>",
    "reduce_sum<double>",
    "rotary_embedding",
    "topk_softmax",
    "copy_strided",
    "fill_zero",
]
WHEN = datetime(2026, 11, 26, 4, 30, tzinfo=UTC)


def kernel(place: int, name: str, share: float, chance: random.Random, whole_ns: float = 4e9) -> KernelStats:
    """Return a kernel whose durations have one or two humps and a tail."""
    middle = 2e3 * 1.9 ** (7 - min(place, 7)) * chance.uniform(0.8, 1.3)
    second = 1.18 if place % 3 == 0 else 1.0
    drawn = sorted(
        middle
        * (second if chance.random() < 0.3 else 1)
        * math.exp(chance.gauss(0, 0.03))
        * (1 + chance.expovariate(40))
        for _ in range(700)
    )
    at = lambda part: drawn[min(int(part * len(drawn)), len(drawn) - 1)]  # noqa: E731
    total = int(whole_ns * share)
    calls = max(int(total / middle), 1)
    fall = -0.04 if place == 1 else 0.06 if place == 0 else 0.0
    return KernelStats(
        name=name,
        calls=calls,
        total_ns=total,
        mean_ns=sum(drawn) / len(drawn),
        p50_ns=at(0.5),
        p99_ns=at(0.99),
        min_ns=drawn[0],
        max_ns=drawn[-1],
        share=share,
        std_ns=middle * 0.05,
        launch=Launch(
            (256, 1, 1), (304 * 256, 8, 1), 1 + place % 3, 128 - place % 64, 64 * (place % 2), 96, 65536 >> place % 5, 0
        ),
        quantiles=tuple(at(i / QUANTILES) for i in range(QUANTILES + 1)),
        drift=tuple(
            (calls // SLICES, at(0.5) * (1 + fall * i / SLICES + chance.gauss(0, 0.006))) for i in range(SLICES)
        ),
        counters={"SQ_INSTS_VALU_MFMA_MOPS_BF16": 1.2e9, "TCC_HIT_sum": 3.1e6} if place == 0 else {},
    )


def ranking(kernels: int, chance: random.Random, *, names: list[str] | None = None, rest: int = 0) -> Ranking:
    weights = [1 / (place + 1) ** 1.2 for place in range(kernels)]
    given = names or NAMES
    made = [
        kernel(
            place,
            given[place] if place < len(given) else f"kernel_number_{place}<float, {place}>(float*)",
            weight / sum(weights),
            chance,
        )
        for place, weight in enumerate(weights)
    ]
    barrier = KernelStats("<barrier packet>", 9120, 2_100_000_000, 230_263.0, 1e5, 2e6, 900.0, 9e6, 0.0)
    return Ranking(
        kernels=tuple(made),
        pseudo=(barrier,),
        parts=(
            Part("process", "4711 ./bench.sh", 41_000, 2_100_000_000, ((made[0].name, 900, 800_000_000),)),
            Part("process", "4712 python worker.py", 40_000, 1_900_000_000, ((made[-1].name, 900, 700_000_000),)),
            Part("gpu", "GPU 0", 81_000, 4_000_000_000, ()),
        ),
        copies=(
            Copies("HOST_TO_DEVICE", 120, 90_000_000, 4_300_000_000),
            Copies("DEVICE_TO_HOST", 12, 1_000_000, None),
        ),
        source="rocpd",
        files=2,
        dispatches=sum(one.calls for one in made),
        rest=rest,
        rest_ns=rest * 1000,
        notes=("results_4713.db: cut, its last 3 dispatches are missing",),
    )


def telemetry(gpus: int, samples: int, chance: random.Random, *, is_capped: bool = False) -> Telemetry:
    made = []
    for gpu in range(gpus):
        for number in range(samples):
            warm = 1 - math.exp(-number / (samples / 6))
            power = min(180 + 560 * warm + chance.gauss(0, 12), 750.0)
            clock = (
                (1260 if is_capped else 1900)
                + (2100 - (1260 if is_capped else 1900)) * (1 - warm)
                + chance.gauss(0, 18)
            )
            made.append(
                Sample(
                    number * 0.25, gpu, clock, 1300.0, power, 45 + 44 * warm, 41 + 33 * warm, 99.0 if number else 0.0
                )
            )
    return Telemetry(
        source="amd-smi",
        samples=tuple(made),
        power_cap_w=dict.fromkeys(range(gpus), 750.0),
        sclk_max_mhz=dict.fromkeys(range(gpus), 2100.0),
        notes=("GPU 0: power cap reached 41 times",) if is_capped else (),
    )


def result(host: str, found: Ranking, *, gpus: int = 1, samples: int = 120, is_capped: bool = False) -> ProfileResult:
    facts = {
        "ROCm": "7.2.0",
        "Driver": "amdgpu 6.14.5" if is_capped else "amdgpu 6.14.8",
        "Profiler": "rocprofv3 1.1.0 (rocpd)",
        "Image": "gpu-amd-base, id 188571990",
        "GPU": f"{gpus} x AMD Instinct MI300X VF (0x74b5)",
        "Clock range": "132 to 2100 MHz",
        "Tree": "3f9a1c0e5b7d",
        "Command": "./bench.sh --batch 64 --dtype bf16",
    }
    return ProfileResult(
        host=host,
        status=0,
        ranking=found,
        tool="rocprofv3 1.1.0 (ROCm 7.2.0)",
        generation="rocprofv3 rocpd",
        telemetry=telemetry(gpus, samples, random.Random(repr(host)), is_capped=is_capped),
        fingerprint=Fingerprint(facts),
    )


def spreads(found: Ranking, hosts: list[str], chance: random.Random) -> list[Spread]:
    made = []
    for place, one in enumerate(found.kernels):
        middle = one.p50_ns or 1.0
        slow = place in (0, 3)
        p50 = {host: middle * (1.11 if slow and host == hosts[-1] else 1 + chance.gauss(0, 0.008)) for host in hosts}
        spread = max(p50.values()) / min(p50.values()) - 1
        cause = "power cap: 749 of 750 W, clock 1260 of 2100 MHz" if slow else None
        made.append(
            Spread(one.name, one.calls, one.total_ns, one.share, p50, spread, hosts[-1] if slow else None, cause)
        )
    return made


def comparison(found: Ranking) -> Comparison:
    told = [("slower", 1.062, 1.041, 1.084), ("faster", 0.91, 0.88, 0.945), ("can't tell", 1.01, 0.97, 1.05)]
    verdicts = []
    for place, one in enumerate(found.kernels[:9]):
        verdict, ratio, low, high = told[place % 3]
        p50 = one.p50_ns or 1.0
        verdicts.append(
            KernelVerdict(
                one.name, verdict, ratio, low, high, 0.03 + 0.01 * (place % 2), p50, p50 * ratio, one.calls, one.calls
            )  # type: ignore[arg-type]
        )
    verdicts.append(KernelVerdict("gone_kernel", "can't tell", missing="b", calls_a=12))
    return Comparison("main", "split-k", 6, 6, tuple(verdicts), ("A B A B on one droplet",), "chisel-dev-1")


def showpiece(
    *, droplets: int = 4, kernels: int = 14, gpus: int = 1, samples: int = 120, names: list[str] | None = None
) -> str:
    chance = random.Random(7)
    found = ranking(kernels, chance, names=names, rest=31)
    hosts = [f"chisel-dev-{number}" for number in range(1, droplets + 1)]
    results = [result(host, found, gpus=gpus, samples=samples, is_capped=host == hosts[-1]) for host in hosts]
    return report_html(
        results,
        merged=found,
        spreads=spreads(found, hosts, chance) if droplets > 1 else (),
        comparison=comparison(found),
        title="./bench.sh --batch 64 --dtype bf16",
        created_at=WHEN,
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(showpiece(), encoding="utf-8")

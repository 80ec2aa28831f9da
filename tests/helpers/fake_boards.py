"""Roots of boards that nobody has here: the files a real one shows, written from data.

Every line is made by this file in the shape that the kernel and NVIDIA's tools give
theirs; nothing is copied from a board.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BOARDS", "Cores", "Fake"]


@dataclass(frozen=True)
class Cores:
    """Some cores of one kind, in the order of their numbers."""

    kind: str
    count: int
    max_khz: int = 1_500_000


@dataclass(frozen=True)
class Fake:
    """One board, and what detection must say of it."""

    profile: str
    title: str
    compatible: tuple[str, ...] = ()
    model: str = ""
    arch: str = "aarch64"
    os: str = "Ubuntu 22.04.5 LTS"
    glibc: str = "2.35"
    python: str = "3.10"
    l4t: str = ""  # "R36 REVISION 4.3"
    memory_kib: int = 4_000_000
    cores: tuple[Cores, ...] = (Cores("Cortex-A76", 4),)
    offline: tuple[int, ...] = ()
    modes: tuple[str, ...] = ()
    mode: int | None = None
    default_mode: int = 0
    rails: tuple[tuple[str, ...], ...] = ()  # channels of each INA3221
    driver: str = "ina3221"
    ina238: bool = False
    ina260: bool = False
    dmi: str = ""
    vcgencmd: bool = False
    throttled: str = ""
    heat_c: float = 45.5


_JP4 = {"os": "Ubuntu 18.04.6 LTS", "glibc": "2.27", "python": "3.6"}
_JP5 = {"os": "Ubuntu 20.04.6 LTS", "glibc": "2.31", "python": "3.8"}
_JP7 = {"os": "Ubuntu 24.04.3 LTS", "glibc": "2.39", "python": "3.12"}
_PI = {"os": "Debian GNU/Linux 12 (bookworm)", "glibc": "2.36", "python": "3.11"}
_ORIN = ("nvidia,tegra234",)
_RK = (Cores("Cortex-A55", 4, 1_800_000), Cores("Cortex-A76", 4, 2_400_000))
_QCS = (Cores("Cortex-A55", 4, 1_900_000), Cores("Cortex-A78", 4, 2_700_000))
_VDD = ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")
_XAVIER_MODES = (
    "MODE_15W_2CORE", "MODE_15W_4CORE", "MODE_15W_6CORE", "MODE_10W_2CORE",
    "MODE_10W_4CORE", "MODE_10W_DESKTOP", "MODE_20W_2CORE", "MODE_20W_4CORE",
    "MODE_20W_6CORE",
)  # fmt: skip

BOARDS = {
    "nano": Fake(
        "jetson-nano",
        "NVIDIA Jetson Nano 4GB",
        ("nvidia,p3450-0000", "nvidia,jetson-nano", "nvidia,tegra210"),
        "NVIDIA Jetson Nano Developer Kit",
        l4t="R32 7.6",
        memory_kib=4_051_048,
        cores=(Cores("Cortex-A57", 4, 1_479_000),),
        modes=("MAXN", "5W"),
        mode=0,
        rails=(("POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"),),
        driver="ina3221x",
        **_JP4,
    ),
    "nano-2gb": Fake(
        "jetson-nano-2gb",
        "NVIDIA Jetson Nano 2GB",
        ("nvidia,p3542-0000", "nvidia,tegra210"),
        "NVIDIA Jetson Nano 2GB Developer Kit",
        l4t="R32 7.1",
        memory_kib=2_027_772,
        cores=(Cores("Cortex-A57", 4, 1_479_000),),
        offline=(2, 3),
        modes=("MAXN", "5W"),
        mode=1,
        **_JP4,
    ),
    "tx1": Fake(
        "jetson-tx1",
        "NVIDIA Jetson TX1",
        ("nvidia,p2371-2180", "nvidia,jetson-cv", "nvidia,tegra210"),
        "jetson_tx1",
        l4t="R32 7.4",
        cores=(Cores("Cortex-A57", 4, 1_734_000),),
        rails=(("VDD_IN", "VDD_GPU", "VDD_CPU"),),
        driver="ina3221x",
        **_JP4,
    ),
    "tx2": Fake(
        "jetson-tx2",
        "NVIDIA Jetson TX2 8GB",
        ("nvidia,p2771-0000", "nvidia,tegra186"),
        "quill",
        l4t="R32 7.6",
        memory_kib=8_042_428,
        cores=(
            Cores("Cortex-A57", 1, 2_035_200),
            Cores("Denver 2", 2, 2_035_200),
            Cores("Cortex-A57", 3, 2_035_200),
        ),
        offline=(1, 2),
        modes=("MAXN", "MAXQ", "MAXP_CORE_ALL", "MAXP_CORE_ARM"),
        mode=3,
        default_mode=2,
        rails=(
            ("VDD_SYS_GPU", "VDD_SYS_SOC", "VDD_4V0_WIFI"),
            ("VDD_IN", "VDD_SYS_CPU", "VDD_SYS_DDR"),
            ("VDD_MUX", "VDD_5V0_IO_SYS", "VDD_3V3_SYS"),
        ),
        driver="ina3221x",
        **_JP4,
    ),
    "tx2-nx": Fake(
        "jetson-tx2-nx",
        "NVIDIA Jetson TX2 NX",
        ("nvidia,p3509-0000+p3636-0001", "nvidia,tegra186"),
        "NVIDIA Jetson TX2 NX Developer Kit",
        l4t="R32 6.1",
        memory_kib=3_964_000,
        cores=(Cores("Denver 2", 2), Cores("Cortex-A57", 4)),
        **_JP4,
    ),
    "xavier-nx": Fake(
        "jetson-xavier-nx",
        "NVIDIA Jetson Xavier NX 8GB",
        ("nvidia,p3509-0000+p3668-0001", "nvidia,tegra194"),
        "NVIDIA Jetson Xavier NX Developer Kit",
        l4t="R35 4.1",
        memory_kib=7_007_000,
        cores=(Cores("Carmel", 6, 1_907_200),),
        offline=(4, 5),
        modes=_XAVIER_MODES,
        mode=5,
        default_mode=5,
        rails=(_VDD,),
        **_JP5,
    ),
    "agx-xavier": Fake(
        "jetson-agx-xavier",
        "NVIDIA Jetson AGX Xavier 32GB",
        ("nvidia,p2972-0000", "nvidia,tegra194"),
        "NVIDIA Jetson AGX Xavier Developer Kit",
        l4t="R35 3.1",
        memory_kib=31_922_000,
        cores=(Cores("Carmel", 8, 2_265_600),),
        modes=("MAXN", "MODE_10W", "MODE_15W", "MODE_30W_ALL"),
        mode=0,
        rails=(("GPU", "CPU", "SOC"), ("CV", "VDDRQ", "SYS5V")),
        **_JP5,
    ),
    "orin-nano-4gb": Fake(
        "jetson-orin-nano",
        "NVIDIA Jetson Orin Nano 4GB",
        ("nvidia,p3768-0000+p3767-0004", *_ORIN),
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit",
        l4t="R36 3.0",
        memory_kib=3_620_000,
        cores=(Cores("Cortex-A78AE", 6, 1_510_400),),
        modes=("10W", "7W_AI", "7W_CPU"),
        mode=0,
        rails=(_VDD,),
    ),
    "orin-nano-8gb": Fake(
        "jetson-orin-nano",
        "NVIDIA Jetson Orin Nano 8GB",
        ("nvidia,p3509-0000+p3767-0003", "nvidia,p3767-0005", *_ORIN),
        "NVIDIA Orin Nano Developer Kit",
        l4t="R35 4.1",
        memory_kib=7_801_000,
        cores=(Cores("Cortex-A78AE", 6, 1_510_400),),
        modes=("15W", "7W"),
        mode=0,
        rails=(_VDD,),
        **_JP5,
    ),
    "orin-nano-super": Fake(
        "jetson-orin-nano",
        "NVIDIA Jetson Orin Nano 8GB Super",
        ("nvidia,p3768-0000+p3767-0005-super", *_ORIN),
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        l4t="R36 4.3",
        memory_kib=7_802_000,
        cores=(Cores("Cortex-A78AE", 6, 1_728_000),),
        modes=("15W", "25W", "MAXN_SUPER"),
        mode=1,
        default_mode=1,
        rails=(_VDD,),
    ),
    "orin-nx": Fake(
        "jetson-orin-nx",
        "NVIDIA Jetson Orin NX 16GB",
        ("nvidia,p3768-0000+p3767-0000", *_ORIN),
        "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
        l4t="R36 4.0",
        memory_kib=15_900_000,
        cores=(Cores("Cortex-A78AE", 8, 1_984_000),),
        offline=(4, 5, 6, 7),
        modes=("MAXN", "10W", "15W", "25W"),
        mode=2,
        default_mode=2,
        rails=(_VDD,),
    ),
    "agx-orin": Fake(
        "jetson-agx-orin",
        "NVIDIA Jetson AGX Orin 64GB",
        ("nvidia,p3737-0000+p3701-0005", *_ORIN),
        "NVIDIA Jetson AGX Orin Developer Kit",
        l4t="R36 4.7",
        memory_kib=64_300_000,
        cores=(Cores("Cortex-A78AE", 12, 2_201_600),),
        modes=("MAXN", "MODE_15W", "MODE_30W", "MODE_50W"),
        mode=3,
        default_mode=2,
        rails=(
            ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
            ("NC", "VDDQ_VDD2_1V8AO", "NC"),
        ),
    ),
    "agx-thor": Fake(
        "jetson-agx-thor",
        "NVIDIA Jetson AGX Thor T5000",
        ("nvidia,p3971-0089+p3834-0008", "nvidia,tegra264"),
        "NVIDIA Jetson AGX Thor Developer Kit",
        l4t="R38 2.1",
        memory_kib=128_790_000,
        cores=(Cores("Neoverse-V3AE", 14, 2_601_000),),
        modes=("MAXN", "120W", "90W", "70W"),
        mode=1,
        default_mode=1,
        rails=(("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),),
        ina238=True,
        **_JP7,
    ),
    "pi4": Fake(
        "raspberry-pi-4",
        "Raspberry Pi 4 4GB",
        ("raspberrypi,4-model-b", "brcm,bcm2711"),
        "Raspberry Pi 4 Model B Rev 1.4",
        memory_kib=3_885_000,
        cores=(Cores("Cortex-A72", 4, 1_800_000),),
        vcgencmd=True,
        throttled="50005",
        **_PI,
    ),
    "pi5": Fake(
        "raspberry-pi-5",
        "Raspberry Pi 5 8GB",
        ("raspberrypi,5-model-b", "brcm,bcm2712"),
        "Raspberry Pi 5 Model B Rev 1.0",
        memory_kib=8_245_000,
        cores=(Cores("Cortex-A76", 4, 2_400_000),),
        vcgencmd=True,
        throttled="0",
        **_PI,
    ),
    "rock-5b": Fake(
        "rock-5b",
        "Radxa ROCK 5B 16GB",
        ("radxa,rock-5b", "rockchip,rk3588"),
        "Radxa ROCK 5B",
        memory_kib=15_960_000,
        cores=(Cores("Cortex-A55", 4, 1_800_000), Cores("Cortex-A76", 4, 2_400_000)),
        **_PI,
    ),
    # fmt: off
    **{
        name: Fake(profile, title, compatible, model, memory_kib=kib, cores=_RK, **_PI)
        for name, profile, title, compatible, model, kib in (
            (
                "orange-pi-5-plus",
                "orange-pi-5",
                "Xunlong Orange Pi 5 32GB",
                ("xunlong,orangepi-5-plus", "rockchip,rk3588"),
                "Xunlong Orange Pi 5 Plus",
                32_700_000,
            ),
            (
                "rock-5c",
                "rock-5c",
                "Radxa ROCK 5C 8GB",
                ("radxa,rock-5c", "rockchip,rk3588s"),
                "Radxa ROCK 5C",
                8_100_000,
            ),
            (
                "rock-5t",
                "rock-5t",
                "Radxa ROCK 5T 32GB",
                ("radxa,rock-5t", "rockchip,rk3588"),
                "Radxa ROCK 5T",
                32_700_000,
            ),
            (
                "nanopi-r6s",
                "nanopi-r6",
                "FriendlyElec NanoPi R6 8GB",
                ("friendlyarm,nanopi-r6s", "rockchip,rk3588s"),
                "FriendlyElec NanoPi R6S",
                8_100_000,
            ),
            (
                "turing-rk1",
                "turing-rk1",
                "Turing Machines RK1 16GB",
                ("turing,rk1", "rockchip,rk3588"),
                "Turing Machines RK1",
                16_200_000,
            ),
        )
    },
    **{
        name: Fake(
            profile,
            title,
            compatible,
            model,
            memory_kib=kib,
            cores=cores,
            vcgencmd=True,
            **_PI,
        )
        for name, profile, title, compatible, model, kib, cores in (
            (
                "pi400",
                "raspberry-pi-400",
                "Raspberry Pi 400 4GB",
                ("raspberrypi,400", "brcm,bcm2711"),
                "Raspberry Pi 400 Rev 1.0",
                3_885_000,
                (Cores("Cortex-A72", 4),),
            ),
            (
                "cm4",
                "raspberry-pi-cm4",
                "Raspberry Pi Compute Module 4 8GB",
                ("raspberrypi,4-compute-module", "brcm,bcm2711"),
                "Raspberry Pi Compute Module 4 Rev 1.1",
                8_100_000,
                (Cores("Cortex-A72", 4),),
            ),
            (
                "pi500",
                "raspberry-pi-500",
                "Raspberry Pi 500 8GB",
                ("raspberrypi,500", "brcm,bcm2712"),
                "Raspberry Pi 500 Rev 1.0",
                8_245_000,
                (Cores("Cortex-A76", 4),),
            ),
            (
                "cm5",
                "raspberry-pi-cm5",
                "Raspberry Pi Compute Module 5 4GB",
                ("raspberrypi,5-compute-module", "brcm,bcm2712"),
                "Raspberry Pi Compute Module 5 Rev 1.0",
                4_100_000,
                (Cores("Cortex-A76", 4),),
            ),
        )
    },
    **{
        name: Fake(profile, title, compatible, model, memory_kib=kib, cores=cores, **more)
        for name, profile, title, compatible, model, kib, cores, more in (
            (
                "rb3-gen2",
                "qualcomm-rb3-gen2",
                "Qualcomm RB3 Gen 2",
                ("qcom,qcs6490-rb3gen2", "qcom,qcm6490"),
                "Robotics RB3gen2",
                5_900_000,
                _QCS,
                {},
            ),
            (
                "rubik-pi-3",
                "rubik-pi-3",
                "Thundercomm Rubik Pi 3",
                ("thundercomm,rubikpi3", "qcom,qcm6490"),
                "Thundercomm RUBIK Pi 3",
                7_900_000,
                _QCS,
                {},
            ),
            (
                "imx95",
                "nxp-imx95",
                "NXP i.MX 95",
                ("fsl,imx95-19x19-evk", "fsl,imx95"),
                "NXP i.MX95 19X19 board",
                8_000_000,
                (Cores("Cortex-A55", 6),),
                {},
            ),
            (
                "imx8mp",
                "nxp-imx8mp",
                "NXP i.MX 8M Plus",
                ("fsl,imx8mp-evk", "fsl,imx8mp"),
                "NXP i.MX8MPlus EVK board",
                6_000_000,
                (Cores("Cortex-A53", 4),),
                {},
            ),
            (
                "beagley-ai",
                "beagley-ai",
                "BeagleBoard.org BeagleY-AI 4GB",
                ("beagle,am67a-beagley-ai", "ti,j722s"),
                "BeagleBoard.org BeagleY-AI",
                3_900_000,
                (Cores("Cortex-A53", 4),),
                {},
            ),
            (
                "kv260",
                "kria-kv260",
                "AMD Kria KV260 4GB",
                ("xlnx,zynqmp-sk-kv260-revA", "xlnx,zynqmp"),
                "ZynqMP KV260 revA",
                3_900_000,
                (Cores("Cortex-A53", 4),),
                {"ina260": True},
            ),
            (
                "dgx-spark",
                "dgx-spark",
                "NVIDIA DGX Spark 128GB",
                (),
                "",
                122_600_000,
                (Cores("Cortex-X925", 10), Cores("Cortex-A725", 10)),
                {"dmi": "NVIDIA_DGX_Spark", **_JP7},
            ),
            (
                "uno-q",
                "arduino-uno-q",
                "Arduino UNO Q 2GB",
                ("arduino,imola", "qcom,qrb2210"),
                "Arduino UnoQ",
                1_700_000,
                (Cores("Cortex-A53", 4),),
                {},
            ),
        )
    },
    # fmt: on
    "unknown-aarch64": Fake(
        "generic-aarch64",
        "64-bit ARM board",
        ("acme,lanai-3636", "acme,soc"),
        "ACME Carrier",
        **_PI,
    ),
    "unknown-armv7": Fake(
        "generic-armv7",
        "32-bit ARM board",
        ("acme,small",),
        "ACME Small",
        arch="armv7l",
        memory_kib=500_000,
        cores=(Cores("Cortex-A7", 4, 1_000_000),),
        **_PI,
    ),
    "pc": Fake(
        "generic-x86",
        "x86-64 machine",
        arch="x86_64",
        cores=(Cores("Brand X Processor", 8, 3_000_000),),
        os="Ubuntu 24.04 LTS",
        glibc="2.39",
        python="3.12",
    ),
}

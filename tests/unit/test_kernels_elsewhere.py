"""The kernels' products on machines that are not here: built for Arm, run in an emulator, compared with this one.

Opt-in, since building takes half a minute: OUTPACE_EMULATE=1, with qemu-user and g++-aarch64-linux-gnu installed.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from outpace.kernels.build import FLAGS, SOURCE

PROGRAM = Path(__file__).with_name("kernel_products.cpp")
CROSS, EMULATOR = "aarch64-linux-gnu-g++", ("qemu-aarch64", "-cpu", "max", "-L", "/usr/aarch64-linux-gnu")
ARM = ["armv8-a", "armv8.2-a+dotprod", "armv8.6-a+i8mm+bf16"]


def is_missing() -> bool:
    return os.environ.get("OUTPACE_EMULATE") != "1" or not all(map(shutil.which, ("g++", CROSS, EMULATOR[0])))


pytestmark = pytest.mark.skipif(is_missing(), reason="OUTPACE_EMULATE is not 1, or no cross compiler, or no emulator")


def products(folder: Path, compiler: str, machine: str, *emulator: str) -> dict[str, tuple[str, float]]:
    made = folder / machine
    flags = [flag for flag in FLAGS if flag != "-O3"]
    subprocess.run(
        [compiler, *flags, "-O2", f"-march={machine}", "-fopenmp", f"-I{SOURCE}", str(PROGRAM), "-o", str(made)],
        check=True,
        capture_output=True,
    )
    lines = subprocess.run([*emulator, str(made)], check=True, capture_output=True, text=True).stdout.splitlines()
    return {name: (digits, float((*rest, "0")[0])) for name, digits, *rest in map(str.split, lines)}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, float]]:
    return products(tmp_path_factory.mktemp("here"), "g++", "x86-64-v3")


@pytest.mark.parametrize("machine", ARM)
def test_products_have_the_bits_of_other_machines(
    here: dict[str, tuple[str, float]], tmp_path: Path, machine: str
) -> None:
    there = products(tmp_path, CROSS, machine, *EMULATOR)
    assert there.keys() == here.keys()  # a product whose rows depend on each other has another name
    assert "bfloat16" in here and sum(name.startswith("codes-") for name in here) == 29
    # An instruction for pairs of bfloat16 rounds once where two others round twice.
    has_pairs = "bf16" in machine
    assert {name for name in here if here[name][0] != there[name][0]} == ({"bfloat16"} if has_pairs else set())
    assert there["bfloat16"][1] == pytest.approx(here["bfloat16"][1], rel=1e-4)

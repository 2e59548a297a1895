"""The Triton kernels without a GPU: run by the interpreter, compiled for what robots carry."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

# Compute capabilities: Jetson Orin, GeForce RTX 40, H100 and H200.
CAPABILITIES = [87, 89, 90]
SHARED_MEMORY = 99 * 1024
"""Bytes that a program may take on the smallest of them, GeForce."""


def test_twins_under_the_interpreter(repository):
    # In a process of its own: what Triton decorates is bound to the interpreter at import.
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "test/kernels/test_twins.py",
            "-p",
            "no:cacheprovider",
            "-W",
            "error",
        ],
        cwd=repository,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout) and "skipped" not in done.stdout


def compile_kernel(kernel, pointers, floats, constants, capability, warps, fused=True):
    """Compile as a call would whose other arguments are integers. Needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget

    signature = dict.fromkeys(kernel.arg_names, "i32")
    signature |= dict.fromkeys(floats, "fp32")
    signature |= pointers | dict.fromkeys(constants, "constexpr")
    index = kernel.arg_names.index
    divisible = [*pointers, "inputs", "outputs"]  # by 16, as allocations and channels are
    return triton.compile(
        triton.compiler.ASTSource(
            fn=kernel,
            signature=signature,
            constexprs={(index(name),): value for name, value in constants.items()},
            attrs={
                (index(name),): [["tt.divisibility", 16]]
                for name in divisible
                if name in kernel.arg_names
            },
        ),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "enable_fp_fusion": fused},
    )


def stack(compiled, folder) -> int:
    """Bytes of the stack that a thread takes, because its registers are too few."""
    from triton.backends import nvidia

    (folder / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    command = [str(tool), "-res-usage", str(folder / "kernel.cubin")]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"STACK:(\d+)", told)
    assert found, told
    return int(found[1])


@pytest.mark.parametrize(
    "capability, dtype",
    # In float32 on the one that has least: GeForce RTX 30.
    [*((capability, torch.float16) for capability in CAPABILITIES), (86, torch.float32)],
    ids=str,
)
def test_deformable_convolution_fits_the_gpu(capability, dtype, tmp_path):
    from yolact_ros.kernels import deformable

    given = {torch.float16: "*fp16", torch.float32: "*fp32"}[dtype]
    # The largest tiles, for one image and for many.
    for pixels, splits in ((18 * 18, 9), (64 * 69 * 69, 1)):
        tiles = deformable.choose_tiles(pixels, 512, 512, dtype, torch.device("cpu"))
        compiled = compile_kernel(
            deformable._deform_conv2d,
            dict.fromkeys(("x", "learned", "weight", "bias"), given)
            | {"out": given if splits == 1 else "*fp32"},
            (),
            {
                "STRIDE": 1,
                "MODULATED": True,
                "SPLITS": splits,
                "BLOCK_PIXELS": tiles.pixels,
                "BLOCK_OUTPUTS": tiles.outputs,
                "BLOCK_INPUTS": tiles.inputs,
            },
            capability,
            tiles.warps,
        )
        assert compiled.metadata.shared <= SHARED_MEMORY
        assert "cp.async" in compiled.asm["ptx"], "loads wait for each other"
        assert stack(compiled, tmp_path) <= 8, "registers spill"
        if dtype == torch.float16:
            assert "mma" in compiled.asm["ptx"], "not on the tensor cores"


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_other_kernels_compile(capability, tmp_path):
    from yolact_ros.kernels import masks, nms, preprocess

    factors = [f"{channel}_{kind}" for channel in "bgr" for kind in ("mean", "factor")]
    made = [
        compile_kernel(
            preprocess._resize_and_normalise,
            {"images": "*u8", "out": "*fp16"},
            ("y_step", "x_step", *factors),
            {"BLOCK": preprocess._BLOCK},
            capability,
            4,
        ),
        compile_kernel(
            masks._assemble,
            {"coefficients": "*fp16", "prototypes": "*fp16", "cells": "*i64", "out": "*fp16"},
            (),
            {"BLOCK_K": 32, "BLOCK_MASKS": masks._BLOCK_MASKS, "BLOCK_CELLS": masks._BLOCK_CELLS},
            capability,
            4,
        ),
        compile_kernel(
            masks._pack,
            {
                "values": "*fp16",
                "extents": "*fp32",
                "rectangles": "*i64",
                "ends": "*i64",
                "out": "*u8",
            },
            (),
            {"SEARCH_STEPS": 7, "BLOCK": masks._BLOCK_BYTES},
            capability,
            4,
        ),
    ]
    lists = {"counts": "*i32", "index": "*i32"}
    pairs = {"pair_counts": "*i32", "boxes": "*fp32", "keys": "*i64", "members": "*i32"}
    given = {"logits": "*fp16", "offsets": "*fp16", "anchors": "*fp32"}
    made += [
        compile_kernel(
            nms._list_candidates,
            {"logits": "*fp16", "anchor_threshold": "*fp32"} | lists,
            (),
            {"BLOCK": nms._ANCHORS, "BLOCK_CLASSES": 128},
            capability,
            1,
        ),
        compile_kernel(
            nms._decode,
            given | lists | {"boxes": "*fp32", "scores": "*fp32"},
            ("centre_variance", "size_variance"),
            {"BLOCK": nms._DECODED, "BLOCK_CLASSES": 128},
            capability,
            1,
        ),
        compile_kernel(
            nms._rank,
            pairs | {"table": "*i32"},
            (),
            {"BLOCK": nms._PAIRS, "OTHERS": nms._OTHER_PAIRS},
            capability,
            8,
        ),
        compile_kernel(
            nms._suppress,
            lists | pairs | {"scores": "*fp32", "wanted": "*i1", "detection_threshold": "*fp32"},
            ("iou_threshold",),
            {"BLOCK": nms._CANDIDATES},
            capability,
            4,
            fused=False,
        ),
    ]
    assert "fma" not in made[-1].asm["ptx"], "other roundings than its twin's"
    for compiled in made:
        assert compiled.metadata.shared <= SHARED_MEMORY
        assert stack(compiled, tmp_path) == 0, "registers spill"

#!/bin/sh
# AutoGPTQ, packing an asymmetric layer, loses the zero points of up to seven rows beside one whose zero point is 0: it
# stores each as z - 1 and, before it shifts it into its field of a 32-bit word, does not cut that -1 to the field's width.
#
# Expected: z - 1 modulo 16 in four bits, which its own CPU code undoes ((stored + 1) & 15), each row by itself.
# Seen: a row of weights that are none negative gets zero point 0 from its own quantiser; -1 becomes 0xffffffff and fills
# every higher field of the word. In a layer of 32 rows with one such row, the four rows after it in its word (4 to 7)
# read a zero point of 0 too: their weights are off by the whole zero point, without a word. All other rows are as asked.
# What follows: the lost zero points cannot be had from the file, so a reader decodes it as stored, and such a row is no
# reference for a dense original. Whoever writes this form has to mask z - 1.
# Versions: auto-gptq 0.7.1 (its wheel is for x86-64 Linux and Python 3.8 to 3.11), torch 2.2.1, transformers 4.38.2,
# accelerate 0.27.2, peft 0.9.0, numpy 1.26.4, datasets 2.18.0, pyarrow 15.0.2, pandas 2.2.1; on a CPU. Date: 2026-11-28.
. "$(dirname "$0")/common.sh"
prepare auto-gptq==0.7.1 torch==2.2.1 transformers==4.38.2 accelerate==0.27.2 peft==0.9.0 numpy==1.26.4 \
  datasets==2.18.0 pyarrow==15.0.2 pandas==2.2.1
see <<'PY'
import torch
from auto_gptq.quantization import Quantizer
from auto_gptq.utils.import_utils import dynamically_import_QuantLinear

ROWS, COLUMNS, BITS = 32, 64, 4
QuantLinear = dynamically_import_QuantLinear(
    use_triton=False, desc_act=False, group_size=COLUMNS, bits=BITS, disable_exllamav2=True, disable_exllama=True
)
for lone in (None, 3):
    torch.manual_seed(0)
    dense = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    if lone is not None:
        dense.weight.data[lone].abs_()
    quantizer = Quantizer()
    quantizer.configure(BITS, perchannel=True, sym=False)
    quantizer.find_params(dense.weight.data, weight=True)
    dense.weight.data = quantizer.quantize(dense.weight.data)
    zeros = [int(zero) for zero in quantizer.zero[:, 0]]
    packed = QuantLinear(BITS, COLUMNS, COLUMNS, ROWS, False, use_cuda_fp16=False, weight_dtype=torch.float32)
    groups = torch.zeros(COLUMNS, dtype=torch.int32)
    packed.pack(dense, quantizer.scale.clone(), quantizer.zero.clone(), groups)
    words = [int(word) & 0xFFFFFFFF for word in packed.qzeros[0]]
    stored = [((words[row // 8] >> BITS * (row % 8)) + 1) & 15 for row in range(ROWS)]
    weight = packed(torch.eye(COLUMNS)).T
    lost = [row for row in range(ROWS) if (weight[row] - dense.weight[row]).abs().max() > 1e-5]
    print("zero points asked for:", zeros)
    print("words stored:", *(f"{word:08x}" for word in words))
    print("zero points in them:", stored)
    print("rows with other weights:", lost)
    assert [row for row in range(ROWS) if stored[row] != zeros[row]] == lost
    assert lost == ([] if lone is None else [4, 5, 6, 7])
PY

"""A random little decoder as a CTranslate2 model, for the scripts here on its generator."""

import os

import ctranslate2
import numpy as np
from ctranslate2.specs import TransformerDecoderModelSpec
from ctranslate2.specs.common_spec import Activation

VOCAB, WIDTH, HEADS, INNER = 64, 32, 2, 64
draw = np.random.default_rng(0)


def _some(*shape):
    return (draw.standard_normal(shape) * 0.35).astype(np.float32)


spec = TransformerDecoderModelSpec.from_config(
    2,
    HEADS,
    activation=Activation.SWISH,
    pre_norm=True,
    ffn_glu=True,
    rms_norm=True,
    rotary_dim=0,
    rotary_interleave=False,
)
decoder = spec.decoder
decoder.scale_embeddings = False
decoder.embeddings.weight, decoder.projection.weight = _some(VOCAB, WIDTH), _some(VOCAB, WIDTH)
norms = [decoder.layer_norm]
for layer in decoder.layer:
    norms += [layer.self_attention.layer_norm, layer.ffn.layer_norm]
    layer.self_attention.linear[0].weight = _some(3 * WIDTH, WIDTH)
    layer.self_attention.linear[1].weight = _some(WIDTH, WIDTH)
    layer.ffn.linear_0.weight, layer.ffn.linear_0_noact.weight = _some(INNER, WIDTH), _some(INNER, WIDTH)
    layer.ffn.linear_1.weight = _some(WIDTH, INNER)
for norm in norms:
    norm.gamma = np.ones(WIDTH, dtype=np.float32)
names = ["<s>", "</s>", "<unk>", *(f"t{index}" for index in range(3, VOCAB))]
spec.register_vocabulary(names)
spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = names[:3]
spec.validate()


def opened(home):
    """Write the model into a folder, and return a generator in float32 on one thread."""
    folder = f"{home}/model"
    os.makedirs(folder)
    spec.save(folder)
    return ctranslate2.Generator(folder, device="cpu", compute_type="float32", intra_threads=1)

"""Where heads, KV groups and neurons live in each model family. The rest of the package knows no family by name.

To add a family, add a row to `FAMILIES`: the key is the `model_type` of its configuration. The tests run on every row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["query", "shared", "neurons"]  # whose rows: of query heads, of key-value heads, of neurons


@dataclass(frozen=True)
class Family:
    """Module names inside one decoder layer. A name that stands more than once is one packed matrix, in that order."""

    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    output: str = "self_attn.o_proj"
    neurons_in: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")  # a row of each is one neuron
    neurons_out: str = "mlp.down_proj"  # a column is one neuron
    layers: str = "model.layers"
    width: str = "intermediate_size"  # what the configuration calls the number of neurons
    norms: tuple[tuple[str, Kind], ...] = ()  # norms (if there) with weights for each head: they are cut alike
    spanning: bool = False  # these norms take one mean over all heads, so cutting some changes the scale of the rest
    no_heads: str = ""  # why heads cannot be cut, if so
    no_heads_with: tuple[str, ...] = ()  # settings with which its head_dim is hidden_size / num_attention_heads
    no_neurons: str = ""  # why neurons cannot be cut, if so
    any_head_count: bool = True  # False: the configuration only takes head counts that divide the hidden size
    equal_type: str = ""  # an architecture that computes the same and takes any head count
    equal_settings: tuple[tuple[str, object], ...] = ()  # what its configuration needs for that
    equal_unless: tuple[str, ...] = ()  # settings that it cannot express

    def rows(self) -> Iterator[tuple[str, list[Kind]]]:
        """Each module whose rows are heads or neurons, with what its blocks of rows are."""
        blocks: dict[str, list[Kind]] = {}
        if not self.no_heads:
            for name, kind in ((self.query, "query"), (self.key, "shared"), (self.value, "shared"), *self.norms):
                blocks.setdefault(name, []).append(kind)  # type: ignore[arg-type]
        for name in () if self.no_neurons else self.neurons_in:
            blocks.setdefault(name, []).append("neurons")
        yield from blocks.items()


FIXED = "its configuration has no head_dim: a head always has hidden_size / num_attention_heads dimensions"
EXPERTS = "its MLP is a mixture of experts, which are left alone"
QK_NORMS: tuple[tuple[str, Kind], ...] = (("self_attn.q_norm", "query"), ("self_attn.k_norm", "shared"))
EACH_LAYER = ("layer_types", "no_rope_layers")  # settings with one value for each layer
QKV, GATE_UP = "self_attn.qkv_proj", "mlp.gate_up_proj"

FAMILIES = {
    "llama": Family(
        any_head_count=False,
        equal_type="mistral",
        equal_settings=(("sliding_window", None),),
        equal_unless=("attention_bias", "mlp_bias"),
    ),
    "mistral": Family(),
    "phi": Family(
        output="self_attn.dense", neurons_in=("mlp.fc1",), neurons_out="mlp.fc2", no_heads_with=("qk_layernorm",)
    ),
    "phi3": Family(
        query=QKV,
        key=QKV,
        value=QKV,
        neurons_in=(GATE_UP, GATE_UP),
        no_heads_with=("rope_parameters.long_factor",),  # one factor for each pair of that head_dim
    ),
    "qwen2": Family(),
    "qwen3": Family(),
    "gemma": Family(),
    "gemma2": Family(any_head_count=False),
    "gemma3_text": Family(any_head_count=False),
    "olmo2": Family(norms=QK_NORMS, spanning=True),
    "granite": Family(),
    "smollm3": Family(),
    "starcoder2": Family(neurons_in=("mlp.c_fc",), neurons_out="mlp.c_proj"),
    "cohere": Family(norms=QK_NORMS),
    "mixtral": Family(no_neurons=EXPERTS),
    "qwen3_moe": Family(no_neurons=EXPERTS),
    "gpt_neox": Family(
        no_heads=FIXED,
        layers="gpt_neox.layers",
        output="attention.dense",
        neurons_in=("mlp.dense_h_to_4h",),
        neurons_out="mlp.dense_4h_to_h",
    ),
    "gpt2": Family(
        no_heads=FIXED,
        layers="transformer.h",
        output="attn.c_proj",
        neurons_in=("mlp.c_fc",),
        neurons_out="mlp.c_proj",
        width="n_inner",
    ),
    "opt": Family(
        no_heads=FIXED,
        layers="model.decoder.layers",
        output="self_attn.out_proj",
        neurons_in=("fc1",),
        neurons_out="fc2",
        width="ffn_dim",
    ),
    "stablelm": Family(no_heads=FIXED),
    "falcon": Family(
        no_heads=FIXED,
        layers="transformer.h",
        output="self_attention.dense",
        neurons_in=("mlp.dense_h_to_4h",),
        neurons_out="mlp.dense_4h_to_h",
        width="ffn_hidden_size",
    ),
}


def family_of(config: object) -> Family:
    """The row of a configuration.

    Raises:
        ValueError: it is no decoder, it is quantised, or there is no row.
    """
    kind = getattr(config, "model_type", "")
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{kind!r} is an encoder-decoder; only decoders are pruned here.")
    if method := getattr(config, "quantization_config", None):
        how = method.get("quant_method") if isinstance(method, dict) else getattr(method, "quant_method", method)
        how = getattr(how, "value", how)
        raise ValueError(f"The checkpoint is quantised ({how}); prune its full-precision original and quantise that.")
    if kind not in FAMILIES:
        inner = getattr(getattr(config, "text_config", None), "model_type", None)
        if inner in FAMILIES:
            raise ValueError(
                f"Model type {kind!r} has no row in amp_tutorial.FAMILIES. Its text model is of type {inner!r}: "
                "load that alone."
            )
        raise ValueError(
            f"Model type {kind!r} has no row in amp_tutorial.FAMILIES (by config.model_type); those with one: "
            f"{', '.join(FAMILIES)}. Add amp.FAMILIES[{kind!r}] = amp.Family(query=…, key=…, value=…, output=…, "
            "neurons_in=…, neurons_out=…, layers=…) with its modules' names."
        )
    return FAMILIES[kind]

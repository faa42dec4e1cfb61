"""Where heads, KV groups and neurons live in each model family. The rest of the package knows no family by name.

To add a family, add a row to `FAMILIES`: the key is the `model_type` of its configuration. The tests run on every row.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

Kind = Literal["query", "shared", "neurons"]  # whose rows: of query heads, of key-value heads, of neurons


class Programs(NamedTuple):
    """Which widths other programs take from the configuration, as far as it was looked up (`measure/programs.py`)."""

    transformers_4: str | None = None  # BOTH, or "heads" or "neurons" alone, or NEITHER; ABSENT: it is not read at all
    vllm: str | None = None
    llama_cpp: str | None = None


@dataclass(frozen=True)
class Stream:
    """Which tensors of a decoder layer read and write the residual stream, by module (or bare tensor) name."""

    reads: tuple[tuple[str, tuple[str, ...]], ...]  # (norm, all that reads it)
    writes: tuple[str, ...] = ("self_attn.o_proj", "mlp.down_proj")
    apart: tuple[str, ...] = ("self_attn.q_norm", "self_attn.k_norm")  # norms inside a head, not of the stream
    last: str = "model.norm"  # the norm that the output head reads
    offset: float = 0.0  # a norm multiplies by offset + weight
    multiple: int = 1  # of the hidden size: the products of packed experts want rows of whole 16 bytes
    root: str = ""  # a buffer of the embedding by which it multiplies its rows: always sqrt(hidden_size)


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
    stream: Stream | None = None  # who reads and writes the residual stream, where the hidden size can be sliced
    no_stream: str = "it has no row of who reads each norm (Family.stream)"  # why it cannot be sliced, if so
    adds: float | str = 1.0  # what attention and MLP add to the stream is multiplied by this, or by this setting; 0: no
    older: tuple[tuple[str, str], ...] = ()  # (what a setting is usually called, what transformers 4 called it here)
    programs: Programs = Programs()

    def rows(self) -> Iterator[tuple[str, list[Kind]]]:
        """Each module whose rows are heads or neurons, with what its blocks of rows are."""
        blocks: dict[str, list[Kind]] = {}
        if not self.no_heads:
            for name, kind in ((self.query, "query"), (self.key, "shared"), (self.value, "shared"), *self.norms):
                blocks.setdefault(name, []).append(kind)  # type: ignore[arg-type]
        for name in () if self.no_neurons else self.neurons_in:
            blocks.setdefault(name, []).append("neurons")
        yield from blocks.items()


BOTH, NEITHER, ABSENT = "heads neurons", "", "absent"
EVERYWHERE = Programs(BOTH, BOTH, BOTH)
NO_HEADS_IN_GGUF = Programs(BOTH, BOTH, "neurons")
NO_HEADS = Programs("neurons", "neurons", "neurons")
FIXED = "its configuration has no head_dim: a head always has hidden_size / num_attention_heads dimensions"
EXPERTS = "its MLP is a mixture of experts, which are left alone"
LAYER_NORM = "its layer norms subtract the mean, so the stream cannot be turned; RMS norms are needed"
OUTPUT_NORM = "its norms weigh what is written to the residual stream, and a weight there cannot be folded away"
EACH_LAYER = ("layer_types", "no_rope_layers")  # settings with one value for each layer
QK_NORMS: tuple[tuple[str, Kind], ...] = (("self_attn.q_norm", "query"), ("self_attn.k_norm", "shared"))
PACKED_QKV, PACKED_MLP = "self_attn.qkv_proj", "mlp.gate_up_proj"
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
ROUTED = ("mlp.gate", "mlp.experts.gate_up_proj")


def _stream(attention: tuple[str, ...], mlp: tuple[str, ...], **other: Any) -> Stream:
    return Stream((("input_layernorm", attention), ("post_attention_layernorm", mlp)), **other)


LLAMA = _stream(QKV, GATE_UP)

# fmt: off
FAMILIES = {
    "llama": Family(any_head_count=False, stream=LLAMA, programs=EVERYWHERE, equal_type="mistral",
                    equal_settings=(("sliding_window", None),), equal_unless=("attention_bias", "mlp_bias")),
    "mistral": Family(stream=LLAMA, programs=EVERYWHERE),
    "phi": Family(output="self_attn.dense", neurons_in=("mlp.fc1",), neurons_out="mlp.fc2", no_stream=LAYER_NORM,
                  no_heads_with=("qk_layernorm",), programs=Programs(BOTH, BOTH, NEITHER)),
    # In the long versions of Phi-3 there is one factor for each pair of dimensions of that head_dim.
    "phi3": Family(query=PACKED_QKV, key=PACKED_QKV, value=PACKED_QKV, neurons_in=(PACKED_MLP, PACKED_MLP),
                   no_heads_with=("rope_parameters.long_factor",), stream=_stream((PACKED_QKV,), (PACKED_MLP,)),
                   programs=NO_HEADS_IN_GGUF),
    "qwen2": Family(stream=LLAMA, programs=Programs(BOTH, "neurons", "neurons")),
    "qwen3": Family(stream=LLAMA, programs=EVERYWHERE),
    "gemma": Family(stream=replace(LLAMA, offset=1.0, root="embed_scale"), programs=EVERYWHERE),
    "gemma2": Family(any_head_count=False, no_stream=OUTPUT_NORM, adds=0.0, programs=EVERYWHERE),
    "gemma3_text": Family(any_head_count=False, no_stream=OUTPUT_NORM, adds=0.0, programs=EVERYWHERE),
    "olmo2": Family(norms=QK_NORMS, spanning=True, no_stream=OUTPUT_NORM, adds=0.0, programs=NO_HEADS_IN_GGUF),
    "granite": Family(stream=LLAMA, adds="residual_multiplier", programs=NO_HEADS_IN_GGUF),
    "smollm3": Family(stream=LLAMA, programs=EVERYWHERE),
    "starcoder2": Family(neurons_in=("mlp.c_fc",), neurons_out="mlp.c_proj", no_stream=LAYER_NORM,
                         programs=NO_HEADS_IN_GGUF),
    "cohere": Family(norms=QK_NORMS, no_stream=LAYER_NORM, programs=NO_HEADS_IN_GGUF),
    # What experts write is not seen, so nothing is known of the whole that a layer adds.
    "mixtral": Family(no_neurons=EXPERTS, adds=0.0, programs=EVERYWHERE, stream=_stream(
        QKV, ROUTED, writes=("self_attn.o_proj", "mlp.experts.down_proj"), multiple=8)),
    # A layer has one of the two MLPs.
    "qwen3_moe": Family(no_neurons=EXPERTS, adds=0.0, programs=EVERYWHERE, stream=_stream(
        QKV, GATE_UP + ROUTED, writes=("self_attn.o_proj", "mlp.down_proj", "mlp.experts.down_proj"), multiple=8),
        older=(("num_local_experts", "num_experts"),)),
    "gpt_neox": Family(no_heads=FIXED, layers="gpt_neox.layers", output="attention.dense", no_stream=LAYER_NORM,
                       neurons_in=("mlp.dense_h_to_4h",), neurons_out="mlp.dense_4h_to_h", programs=NO_HEADS,
                       older=(("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct"))),
    "gpt2": Family(no_heads=FIXED, layers="transformer.h", output="attn.c_proj", neurons_in=("mlp.c_fc",),
                   neurons_out="mlp.c_proj", width="n_inner", no_stream=LAYER_NORM,
                   programs=Programs("neurons", "neurons", NEITHER)),
    "opt": Family(no_heads=FIXED, layers="model.decoder.layers", output="self_attn.out_proj", neurons_in=("fc1",),
                  neurons_out="fc2", width="ffn_dim", no_stream=LAYER_NORM,
                  programs=Programs("neurons", "neurons", ABSENT)),
    "stablelm": Family(no_heads=FIXED, no_stream=LAYER_NORM, programs=NO_HEADS),
    # Falcon's layer adds attention's output into the MLP's in place, so what each writes is not seen apart.
    "falcon": Family(adds=0.0, no_heads=FIXED, layers="transformer.h", output="self_attention.dense",
                     width="ffn_hidden_size", neurons_in=("mlp.dense_h_to_4h",),
                     neurons_out="mlp.dense_4h_to_h", no_stream=LAYER_NORM,
                     programs=Programs("neurons", NEITHER, NEITHER)),
}
# fmt: on


def family_of(config: object) -> Family:
    """The row of a configuration; a ValueError if it is not a decoder, is quantised, or there is no row."""
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


def older_names_of(config: object) -> dict[str, str]:
    """What transformers 4 called settings of this family, where it was not as in most."""
    return dict(FAMILIES[kind].older) if (kind := getattr(config, "model_type", "")) in FAMILIES else {}

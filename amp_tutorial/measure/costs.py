"""What running a model costs: operations, the key-value cache, size, time, energy and carbon.

Operations and cache follow from a configuration alone: the model is built on the meta device and run there, without
weights. Time is measured. Energy is mostly an estimate, and the result says of what.
"""

import copy
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

from ..core.anatomy import Anatomy
from ..core.checkpoint import without_weights
from ..core.sums import positions_of
from ..files.arguments import at_least_one
from ..files.checkpoints import wrapping


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a batch; a multiply-add is two. Only matrix products count."""

    prefill: int  # a text of `length` tokens, logits of every position included
    decode: int  # one more token of every text, with a cache of `length` tokens

    def __str__(self) -> str:
        return f"{self.prefill / 1e9:.3g} GFLOP to read the text, {self.decode / 1e9:.3g} GFLOP for the next token"


@contextmanager
def on_meta() -> Iterator[None]:
    """Let a model run there: before 5.4 transformers asks torch whether "meta" has autocast on, which torch refuses."""
    asked = torch.is_autocast_enabled
    if Version(transformers.__version__) < Version("5.4"):
        torch.is_autocast_enabled = lambda *kind: kind != ("meta",) and asked(*kind)
    try:
        yield
    finally:
        torch.is_autocast_enabled = asked


@torch.no_grad()
@on_meta()
def flops(model: PreTrainedModel | PreTrainedConfig, length: int, batch: int = 1) -> Flops:
    """Count the operations of reading `length` tokens, and of one token after them, as torch counts them.

    For a LLaMA with hidden size d, H heads and G key-value heads of d_h, m neurons, L layers and vocabulary V, and n
    tokens: prefill = 2n·(L·(2·d·d_h·(H + G) + 3·d·m + 2n·H·d_h) + V·d), and n·d_h more for the rotary angles.
    Attention counts in full, as plain attention computes it; a causal kernel saves up to half of its 2n·H·d_h.

    Args:
        model: a model, which is left alone, or its configuration.

    Raises:
        ValueError: no positive length or batch.
    """
    twin = _on_meta(model, length, batch)
    ids = torch.zeros((batch, length), dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as reading, sdpa_kernel(SDPBackend.MATH):
        cache = twin(input_ids=ids, use_cache=True).past_key_values
    with FlopCounterMode(display=False) as writing, sdpa_kernel(SDPBackend.MATH):
        twin(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
    return Flops(reading.get_total_flops(), writing.get_total_flops())


@torch.no_grad()
@on_meta()
def kv_cache_bytes(
    model: PreTrainedModel | PreTrainedConfig, tokens: int, batch: int = 1, dtype: torch.dtype | None = None
) -> int:
    """Bytes of keys and values after `tokens` tokens of each text, as transformers holds them.

    2 · layers · key-value heads · head_dim · tokens · bytes per value; a sliding window stops its layer's growth.
    Layers with a convolution or a state space instead of attention keep a state that does not grow; it is not counted.

    Args:
        model: a model, or its configuration.
        dtype: of the cache; by default that of the model, for a configuration what it says, else float32.

    Raises:
        ValueError: no positive number of tokens or batch.
    """
    twin = _on_meta(model, tokens, batch, dtype)
    ids = torch.zeros((batch, tokens), dtype=torch.long, device="meta")
    cache = twin.base_model(input_ids=ids, use_cache=True).past_key_values
    return _kept(cache)


def _kept(cache: Any) -> int:
    """Bytes of the keys and values in a cache; layers without attention have none there."""
    return sum(t.nbytes for layer in cache.layers if hasattr(layer, "keys") for t in (layer.keys, layer.values))


def _on_meta(
    model: PreTrainedModel | PreTrainedConfig, length: int, batch: int, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """The same architecture without weights, whose attention and experts are plain matrix products."""
    at_least_one(length=length, batch=batch)
    if not hasattr(model, "config") and not isinstance(model, PreTrainedConfig):
        raise ValueError(wrapping(model))
    config = copy.deepcopy(model if isinstance(model, PreTrainedConfig) else model.config)
    config.pad_token_id = None  # else GPT-2 looks into the ids, to warn of padding
    dtype = dtype or (config.dtype if isinstance(model, PreTrainedConfig) else model.dtype)
    config._attn_implementation = "eager"
    twin = without_weights(config, dtype or torch.float32)
    if getattr(config, "_experts_implementation", None):
        twin.set_experts_implementation("batched_mm")  # its work does not depend on the data, which meta has not
    return twin


@dataclass(frozen=True)
class Size:
    """What a model weighs and what a token costs."""

    parameters: int
    block_parameters: int
    bytes: int  # of all weights, as stored
    macs_per_token: float  # multiply-adds, mean over a sequence of `length` tokens, output head included
    kv_cache_bytes_per_token: int


@torch.no_grad()
def size(model: PreTrainedModel, length: int = 128) -> Size:
    """Parameters, bytes, multiply-adds per token (counted by torch on a real pass) and KV cache.

    Raises:
        ValueError: no positive length; what `Anatomy.of` says.
    """
    at_least_one(length=length)
    anatomy, device = Anatomy.of(model), next(model.parameters()).device
    ids = torch.zeros((1, length), dtype=torch.long, device=device)
    attention, experts = model.config._attn_implementation, getattr(model.config, "_experts_implementation", None)
    model.set_attn_implementation("eager")  # plain matrix products, which the counter sees on every device
    if experts:
        model.set_experts_implementation("eager")
    try:  # MATH: the same of a family whose attention cannot be set (Falcon)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(input_ids=ids, use_cache=False)
    finally:
        model.set_attn_implementation(attention)
        if experts:
            model.set_experts_implementation(experts)
    cache = model(input_ids=ids[:, :1], use_cache=True).past_key_values
    return Size(
        parameters=model.num_parameters(),
        block_parameters=anatomy.block_parameters,
        bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        macs_per_token=counter.get_total_flops() / 2 / length,
        kv_cache_bytes_per_token=_kept(cache),
    )


@dataclass(frozen=True)
class Timing:
    """Seconds: the median of the repeats, and their quartiles; of a single repeat all three are that."""

    median: float
    low: float
    high: float


@torch.no_grad()
def latency(
    model: PreTrainedModel, prompt: int = 128, new: int = 16, batch: int = 1, repeats: int = 7, seed: int = 0
) -> dict[str, Timing]:
    """Time of a prefill of `prompt` tokens, and of decoding one token with the cache, warmed up.

    Returns:
        "prefill": seconds for the whole prompt. "decode": seconds per new token of the batch.

    Raises:
        ValueError: no repeat, prompt, new token or batch; more tokens than a model has learned positions for.
    """
    at_least_one(prompt=prompt, new=new, batch=batch, repeats=repeats)
    if said := wrapping(model, measured=True):
        raise ValueError(said)
    if (most := positions_of(model)) is not None and prompt + new > most:
        raise ValueError(f"prompt={prompt} and new={new} are more than this model's {most:,} learned positions.")
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, (batch, prompt), generator=generator).to(device)

    def decode() -> float:
        cache = model(input_ids=ids, use_cache=True).past_key_values
        return _clock(lambda: _decode(model, ids[:, -1:], cache, new), device) / new

    model(input_ids=ids, use_cache=True)
    decode()  # warm up both
    prefill = [_clock(lambda: model(input_ids=ids, use_cache=True), device) for _ in range(repeats)]
    return {"prefill": _timing(prefill), "decode": _timing([decode() for _ in range(repeats)])}


def _decode(model: PreTrainedModel, token: torch.Tensor, cache: object, new: int) -> None:
    for _ in range(new):
        token = model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)


def _clock(run: Callable[[], object], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def _timing(seconds: list[float]) -> Timing:
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else 3 * seconds
    return Timing(statistics.median(seconds), low, high)


@dataclass
class Energy:
    """What a run used; amounts stay zero while it lasts."""

    kwh: float = 0.0
    grams: float = 0.0  # CO2 equivalent: kwh · factor
    seconds: float = 0.0
    factor: float = 0.0  # of the grid, in grams of CO2 equivalent per kWh
    grid: str = ""  # where the factor is from
    measured: bool = False  # whether counters of the processor were read; memory is always estimated
    method: str = ""  # for each part of the machine: measured by what, or estimated from what

    def __str__(self) -> str:
        return (
            f"{self.kwh:.3g} kWh in {self.seconds:.1f} s, {self.grams:.3g} g CO2e at {self.factor:g} g/kWh "
            f"({self.grid}); {self.method}"
        )


@contextmanager
def energy(country: str | None = None, factor: float | None = None) -> Iterator[Energy]:
    """Energy and carbon of what is done inside the context, by codecarbon in its offline mode.

        with amp.energy(country="BRA") as used:
            amp.perplexity(model, tokenizer)
        print(used)

    No network is used and no file is written. The whole machine counts, other programs too. Where the processor's own
    counters can be read (RAPL on Linux as root, PowerMetrics, Energy Meter) its energy is measured; on most laptops
    and on virtual machines it is estimated from its load and rated power, and a second of it is worth little.

    Args:
        country: three letters (ISO 3166), for the yearly mean of its grid in codecarbon's table.
        factor: grams of CO2 equivalent per kWh, if you know your grid's better.

    Raises:
        ValueError: neither or both of them, a country without a row in the table, or a negative factor.
        ImportError: codecarbon is not installed.
    """
    if (country is None) == (factor is None):
        raise ValueError("Say either country='BRA' (three letters) or factor=… in grams of CO2e per kWh.")
    if factor is not None and factor < 0:
        raise ValueError(f"factor={factor} must not be negative: it is in grams of CO2e per kWh.")
    tracked = _codecarbon()
    used = Energy(factor=factor or 0.0, grid="as given")
    if country is not None:
        used.factor, used.grid = grid_of(country)
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)  # it speaks before it reads its own log_level
    tracker = tracked.OfflineEmissionsTracker(
        country_iso_code=country or "",
        force_carbon_intensity_g_co2e_kwh=used.factor,  # stated here, and never asked of a service
        output_methods=[],  # no file
        emissions_endpoint=None,  # whatever a .codecarbon.config says
        measure_power_secs=1,
        log_level="critical",
    )
    tracker.start()
    try:
        yield used
    finally:
        tracker.stop()
        found = tracker.final_emissions_data
        used.kwh, used.grams, used.seconds = found.energy_consumed, 1000 * found.emissions, found.duration
        used.measured, used.method = _method(tracker)


def grid_of(country: str) -> tuple[float, str]:
    """The yearly mean of a country's grid in grams of CO2 equivalent per kWh, and whose figure it is.

    Raises:
        ValueError: a country without a row in codecarbon's table.
        ImportError: codecarbon is not installed.
    """
    row = _codecarbon().input.DataSource().get_global_energy_mix_data().get(country, {})
    if "carbon_intensity" not in row:
        raise ValueError(f"No grid for country={country!r}: give three letters such as 'BRA', or factor=….")
    return float(row["carbon_intensity"]), f"{row['country_name']} {row['year']}, codecarbon"


def _codecarbon() -> Any:
    try:
        import codecarbon.input
    except ImportError as error:
        raise ImportError("Energy needs codecarbon; install it with: pip install codecarbon.") from error
    return codecarbon


COUNTERS = {
    "Intel Rapl": "RAPL",
    "Windows Emi": "Energy Meter",
    "Intel Power Gadget": "Power Gadget",
    "AppleSiliconChip": "PowerMetrics",
    "Raspberry": "the board",
}


def _method(tracker: Any) -> tuple[bool, str]:
    """Whether the processor was measured, and what each part of the machine goes by, from codecarbon's descriptions."""
    said, measured = [], False
    for part in map(str, tracker._conf["hardware"]):
        counter = next((name for key, name in COUNTERS.items() if key in part), None)
        if part.startswith("RAM"):
            said.append("memory estimated from its size")
        elif part.startswith("GPU"):
            said.append("GPU measured by its driver")
        elif counter:
            measured = True
            said.append(f"processor measured by {counter}")
        else:
            by = "load and rated power (TDP)" if "Cpu Load" in part else "rated power (TDP) alone"
            said.append(f"processor estimated from {by}")
    return measured, ", ".join(dict.fromkeys(said))

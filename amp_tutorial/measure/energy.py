"""Energy and carbon of what is run on this machine: mostly an estimate, and the result says of what."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


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
    try:
        from codecarbon import OfflineEmissionsTracker
        from codecarbon.input import DataSource
    except ImportError as error:
        raise ImportError("Energy needs codecarbon; install it with: pip install codecarbon.") from error
    used = Energy(factor=factor or 0.0, grid="as given")
    if country is not None:
        table = DataSource().get_global_energy_mix_data()
        if country not in table or "carbon_intensity" not in table[country]:
            raise ValueError(f"No grid for country={country!r}: give three letters such as 'BRA', or factor=….")
        row = table[country]
        used.factor, used.grid = float(row["carbon_intensity"]), f"{row['country_name']} {row['year']}, codecarbon"
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)  # it speaks before it reads its own log_level
    tracker = OfflineEmissionsTracker(
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

"""Settings under the names that transformers 4 had for them, beside those of transformers 5.

Readers that only know the old names take a default without a word: another rotary base, and so other logits.
transformers 5 reads both names. Nothing is lost.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .atomic import write_json


def add_older_names(folder: Path, own: Mapping[str, str]) -> None:
    """Say in a saved folder once more, under the names of transformers 4, what transformers 5 has renamed.

    Args:
        own: see `older_names`.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, older_names(config, own) | config, indent=2, sort_keys=True, allow_nan=True)
    path = folder / "tokenizer_config.json"
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.get("tokenizer_class") == "TokenizersBackend":  # the same class, by the name that both lines know
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(settings.get("extra_special_tokens"), list):
            settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
        write_json(path, settings, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=True)


def older_names(config: Mapping[str, Any], own: Mapping[str, str]) -> dict[str, Any]:
    """The settings of a configuration that had other names in transformers 4, under those names.

    Args:
        own: where the family departs from most: its older name for what most families called so, as in
            {"rope_theta": "rotary_emb_base"}.
    """
    rope = config.get("rope_parameters") or {}
    main = rope.get("full_attention", rope)  # families with two kinds of attention keep a set for each
    older = {
        "rope_theta": main.get("rope_theta"),
        "partial_rotary_factor": main.get("partial_rotary_factor"),
        "rope_local_base_freq": (rope.get("sliding_attention") or {}).get("rope_theta"),
        "num_local_experts": config.get("num_local_experts"),
        "torch_dtype": config.get("dtype"),
    }
    if main.get("rope_type", "default") != "default":
        older["rope_scaling"] = {k: v for k, v in main.items() if k not in ("rope_theta", "partial_rotary_factor")}
    return {own.get(name, name): value for name, value in older.items() if value is not None}

"""From the figures of a run, plain data as in results.json, to Markdown; nothing is measured here."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from amp_tutorial.files.atomic import write_text

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
MB = 1e6


def lines_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    bars = "|" + "|".join("---:" for _ in head) + "|"
    return ["| " + " | ".join(head) + " |", bars, *("| " + " | ".join(row) + " |" for row in rows), ""]


def times(found: dict[str, Any] | None) -> str:
    """A ratio: the median, and in brackets the quartiles where there were rounds enough."""
    if found is None:
        return "–"
    spread = f" ({found['low']:.2f}–{found['high']:.2f})" if found["rounds"] > 2 else ""
    return f"{found['median']:.2f}{spread}"


def megabytes(size: float | None) -> str:
    return "–" if size is None else f"{max(0.0, size) / MB:.1f}"


def scoring(part: dict[str, Any]) -> list[str]:
    rows = []
    for row in part["rows"]:
        ratios, peak = row["ratios"], row["peak_above_plain_bytes"]
        shape = [f"{row['hidden']}", f"{row['hidden'] // row['head_dim']} × {row['head_dim']}", f"{row['length']}"]
        cells = [times(ratios.get(k)) for k in ("score", "weights alone", "with logits", "naive", "official")]
        memory = [megabytes(peak.get("score")), megabytes(peak.get("naive")), megabytes(row["all_heads_bytes"])]
        rows.append([*shape, cells[0], f"{1 + row['product_share']:.2f}", *cells[1:], " / ".join(memory)])
    head = [
        "hidden",
        "heads",
        "length",
        "`score`",
        "a second product",
        "of it weights",
        "with logits",
        "naive",
        "official way",
    ]
    good = sum(row["ratios"]["score"]["median"] <= part["goal"] for row in part["rows"])
    note = (
        "Scoring by all criteria together, as a multiple of a plain forward pass of the decoder, without logits, over "
        f"the same {part['rows'][0]['tokens']:,} random tokens, float32. *A second product*: 1 plus the share "
        "that a product of the size of the output projection has in all products with weights. Exact head scores need "
        "one; `score` takes the projection's own output from it, so that it is not computed twice. *Of it weights*: "
        "the share of criteria that see no data, the same for any number of tokens. "
        "*Naive* is a hook that holds tokens × heads × hidden of a batch; *official way* follows AMP's own "
        "code: two passes, one prompt at a time, each through the generation of one token. Peak memory is that above "
        "the plain pass, over one batch, of `score` / the naive hook / tokens × heads × hidden by arithmetic. "
        f"Goal, at most {part['goal']:.2f}: met in {good} of {len(part['rows'])} shapes."
    )
    return [*lines_of([*head, "peak, MB"], rows), note, ""]


def surgery(part: dict[str, Any]) -> list[str]:
    rows = [
        [
            f"{row['checkpoint_bytes'] / MB:.0f}",
            f"{row['read_and_write_seconds']:.2f}",
            *(times(row["ratios"][k]) for k in ("prune and save", "prune_folder")),
        ]
        for row in part["rows"]
    ]
    head = ["checkpoint, MB", "read and written once, s", "`prune` + `save`", "`prune_folder`, random scores"]
    good = sum(row["ratios"]["prune and save"]["median"] <= part["goal"] for row in part["rows"])
    note = (
        f"Removing {100 * part['rows'][0]['removed']:.0f} % of a model in memory and saving the rest, as a multiple of "
        "reading its checkpoint and writing it once, on the same disk; `prune_folder` also reads it. "
        f"Goal, at most {part['goal']:.0f}: met in {good} of {len(part['rows'])} sizes."
    )
    return [*lines_of(head, rows), note, ""]


KINDS = ("prefill blocks", "decode blocks", "prefill whole", "decode whole")


def of_ideal(row: dict[str, Any], kind: str) -> str:
    return f"{row[kind]['speed_up']['median']:.2f} ({row[kind]['of_ideal']:.2f})"


def speed(part: dict[str, Any], brief: bool = False) -> list[str]:
    rows = []
    for row in part["rows"]:
        shown = (row["align"], row["parts"]) == (1, "both") if brief else row["align"] in (1, 64)
        if shown or len(part["rows"]) < 8:
            about = [f"{row['hidden']}", row["dtype"], f"{100 * row['removed']:.0f} %", f"{row['align']}"]
            rows.append([*about, f"{row['heads']}", f"{row['neurons']}", *(of_ideal(row, kind) for kind in KINDS)])
    note = (
        "Speed-up over the dense model, and in brackets its share of the ideal (parameters before / after, of the "
        f"blocks or with the output head); prefill of {part['prompt']} tokens, decode one token at a time after them, "
        "batch 1. "
    )
    head = ["hidden", "dtype", "removed", "align", "heads", "neurons", *KINDS]
    good = {k: sum(row[k]["of_ideal"] >= part["goal"] for row in part["rows"]) for k in KINDS[:2]}
    note += f"Goal, at least {part['goal']} of the ideal in the blocks: prefill met in {good[KINDS[0]]}, decode in "
    note += f"{good[KINDS[1]]} of {len(part['rows'])} cases."
    return [*lines_of(head, rows), note, "", *alignment(part)]


def alignment(part: dict[str, Any]) -> list[str]:
    """Median share of the ideal for each `align`, over the widths and ratios at which rounding changes anything."""
    aligns, dtypes = (sorted({row[key] for row in part["rows"]}) for key in ("align", "dtype"))

    def case(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["hidden"], row["dtype"], row["ratio"]

    both = [r for r in part["rows"] if r["parts"] == "both"]
    even = {case(r) for r in both if r["align"] == 1 and r["neurons"] % 64 == 0}
    rows = [r for r in both if case(r) not in even] or both

    def cell(align: int, dtype: str, kind: str) -> str:
        return f"{median(r[kind]['of_ideal'] for r in rows if (r['align'], r['dtype']) == (align, dtype)):.2f}"

    head = ["`align`", *(f"{dtype}, {kind}" for dtype in dtypes for kind in KINDS[:2])]
    lines = [[f"{a}", *(cell(a, dtype, kind) for dtype in dtypes for kind in KINDS[:2])] for a in aligns]
    note = "Median share of the ideal for each `align=`, over the cases in which it changes the number of neurons."
    return [*lines_of(head, lines), note, ""]


def memory(part: dict[str, Any]) -> list[str]:
    size, run = part["bytes"], part["runs"]["prune_folder"]
    rows = [[f"{b / MB:.0f}" for b in (size["weights"], size["limit"], run["peak_RssAnon"])]]
    other = "fails" if not part["runs"]["in memory, same limit"]["done"] else "works too, so the limit shows nothing"
    note = f"`prune_folder` under a limit of the operating system; the way in memory {other} under the same limit."
    return [*lines_of(["weights, MB", "limit above the imports, MB", "own peak, MB"], rows), note, ""]


def gpu(part: dict[str, Any]) -> list[str]:
    lines = []
    for model in part["models"]:
        score = model["scoring"]["ratios"]["score"]
        lines += [f"{model['name']} on {part['device']}: `score` over {model['tokens']:,} tokens {times(score)}.", ""]
        rows = [
            [f"{row['batch']}", f"{100 * row['removed']:.0f} %", f"{row['align']}", *(of_ideal(row, k) for k in KINDS)]
            for row in model["rows"]
        ]
        lines += lines_of(["batch", "removed", "align", *KINDS], rows)
    paper = ", ".join(f"{name} {value:.2f}" for name, value in part["paper"].items())
    return [*lines, f"The paper's speed-ups at 20 and 30 %: {paper} [second-hand].", ""]


PARTS: dict[str, tuple[str, Any]] = {
    "scoring": ("Scoring", scoring),
    "surgery": ("Cutting and saving", surgery),
    "speed": ("Pruned models", speed),
    "memory": ("Larger than memory", memory),
    "gpu": ("On a GPU", gpu),
}


def table(found: dict[str, Any], brief: bool = False) -> str:
    """All parts of a run in Markdown; in brief, of pruned models only those with heads and neurons gone, unrounded."""
    about = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"Measured by `{found['command']}` on {about['cores']} cores of {about['processor']} ({about['system']}), "
        f"threads: {about['threads']}; Python {about['python']}, {versions}. Every ratio is taken within a round, in "
        "which all run in turn; medians over rounds, quartiles in brackets.",
        "",
    ]
    for name, part in found["parts"].items():
        title, show = PARTS[name]
        lines += [f"**{title}**", ""]
        more = {"brief": True} if brief and name == "speed" else {}
        lines += show(part, **more) if part["status"] == "ok" else [f"Not run: {part['reason']}", ""]
    return "\n".join(lines).rstrip()


def marked(readme: Path) -> tuple[str, str]:
    """What stands before and after the benchmarks in a page.

    Raises:
        ValueError: the file or its two markers are not there.
    """
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{readme} has no part between {BEGIN} and {END} to fill.")
    return before, after


def into_readme(readme: Path, found: dict[str, Any]) -> None:
    before, after = marked(readme)
    write_text(readme, f"{before}{BEGIN}\n{table(found, brief=True)}\n{END}{after}")

"""Simulates the PowerInfer paper's models on its machines and writes the tables of docs/SIMULATION.md.

    python tools/paper_table.py --hotset build/dev/bin/hotset --docs docs/SIMULATION.md

Models are made up in outline and placed by `hotset plan --simulate`; no weights, no card and no time are needed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compare_report import replace_section

MACHINES = Path(__file__).parent / "machines"
# What the runtime leaves of a card: 24 GiB and 11 GiB less the driver's and the display's part. For both engines alike.
BUDGETS = {"pc-high": 22.5, "pc-low": 10.0}  # GiB
N_CTX = 640  # 64 tokens in and 512 out, rounded; a step attends to half of it
BYTES_PER_WEIGHT = {"f16": 2.0, "q4_0": 18 / 32}
OVER_SELECTION = 1.5  # candidates of a trained predictor per active unit
STEP_US = 3  # of the pessimistic column: a kernel's start and end within a graph


@dataclass(frozen=True)
class Model:
    """One of the paper's models: what `hotset synth` calls it, its sparsity and skew, parameters of its predictor."""

    name: str
    recipe: str
    sparsity: float
    skew: str
    predictor: float  # 1e9 parameters: Table 6 of the paper; where it has none 6 % of the model, or its mean of 7 %
    sharper: str  # the paper's skew over all layers together, which differ

    def words(self, type_name: str) -> str:
        """The recipe in one weight type."""
        return f"{self.recipe} type={type_name} pure sparsity={self.sparsity} skew={self.skew}"


# Share of units that have 80 % of the firings: of one layer, and of all together (section 3 of the paper).
OPT, REGLU = ("0.26:0.8", "0.17:0.8"), ("0.43:0.8", "0.26:0.8")
FALCON_SHAPE = "n_layer=60,n_embd=8192,n_ff=32768,n_head=128,n_head_kv=8,head_dim=64,n_vocab=65024,n_ctx=2048"
BAMBOO_SHAPE = "n_layer=32,n_embd=4096,n_ff=14336,n_head=32,n_head_kv=8,n_vocab=32000,n_ctx=4096"
MODELS = {
    model.name: model
    for model in (
        Model("OPT-13B", "opt shape=opt-13b", 0.97, OPT[0], 0.88, OPT[1]),
        Model("OPT-30B", "opt shape=opt-30b", 0.97, OPT[0], 1.8, OPT[1]),
        Model("OPT-66B", "opt shape=opt-66b", 0.97, OPT[0], 3.23, OPT[1]),
        Model("OPT-175B", "opt shape=opt-175b", 0.97, OPT[0], 10.5, OPT[1]),
        # No row of the table of families has attention and FFN side by side; the bytes of this one are the same.
        Model("Falcon-40B", f"nemotron activation=relu shape={FALCON_SHAPE}", 0.95, OPT[0], 3.63, OPT[1]),
        Model("LLaMA2-13B", "llama activation=relu shape=llama-13b", 0.78, REGLU[0], 0.85, REGLU[1]),
        Model("LLaMA2-70B", "llama activation=relu shape=llama-70b", 0.82, REGLU[0], 5.66, REGLU[1]),
        Model("Bamboo-7B", f"llama activation=drelu shape={BAMBOO_SHAPE}", 0.90, REGLU[0], 0.51, REGLU[1]),
    )
}


@dataclass(frozen=True)
class Measured:
    """The paper's bars (figures 10 to 13, output of 512 tokens, input of 64) in tokens/s."""

    machine: str
    type_name: str
    model: str
    powerinfer: float
    llama_cpp: float


PAPER = [
    Measured("pc-high", "f16", "OPT-30B", 16, 1.6),
    Measured("pc-high", "f16", "OPT-66B", 2.3, 0.6),
    Measured("pc-high", "f16", "Falcon-40B", 13, 1.1),
    Measured("pc-high", "f16", "LLaMA2-70B", 2.0, 0.6),
    Measured("pc-high", "q4_0", "OPT-66B", 12, 2.9),
    Measured("pc-high", "q4_0", "OPT-175B", 1.9, 0.7),
    Measured("pc-high", "q4_0", "Falcon-40B", 29, 17),
    Measured("pc-high", "q4_0", "LLaMA2-70B", 10, 3.2),
    Measured("pc-low", "f16", "Bamboo-7B", 26, 7.3),
    Measured("pc-low", "f16", "OPT-13B", 13, 1.9),
    Measured("pc-low", "f16", "LLaMA2-13B", 9.5, 2.0),
    Measured("pc-low", "f16", "OPT-30B", 2.9, 0.65),
    Measured("pc-low", "q4_0", "OPT-30B", 13, 3.8),
    Measured("pc-low", "q4_0", "OPT-66B", 5.3, 1.1),
    Measured("pc-low", "q4_0", "Falcon-40B", 16, 2.0),
    Measured("pc-low", "q4_0", "LLaMA2-70B", 4.2, 1.1),
]


def plan(hotset: Path, each: Measured, *words: str, model: Model | None = None) -> dict[str, Any]:
    """What `hotset plan` says of a model on a machine."""
    recipe = (model or MODELS[each.model]).words(each.type_name)
    command = [str(hotset), "plan", "--json", "--synth", recipe, "--machine", str(MACHINES / f"{each.machine}.json"),
               "-c", str(N_CTX), "-b", "64", *words]  # fmt: skip
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def part(planned: dict[str, Any], name: str, device: str = "cpu") -> int:
    """Bytes of a component."""
    return sum(each["bytes"] for each in planned["components"] if each["name"] == name and each["device"] == device)


def layer_split(hotset: Path, each: Measured, n_compute: int) -> tuple[float, int, int]:
    """Tokens/s of whole layers on the card, the rest on the CPU, every weight read: also layers there and in all.

    The head goes to the card last, as in llama.cpp.
    """
    rates = json.loads((MACHINES / f"{each.machine}.json").read_text())
    gpu, cpu = rates["gpu"]["dense_gbps"] * 1e9, rates["read"][0]["dense_gbps"] * 1e9
    dense = plan(hotset, each, "--mode", "dense", "--vram-budget", "0")
    n_layer = len(dense["layers"])
    weights = (part(dense, "attention") + part(dense, "units")) / n_layer
    kv = part(dense, "kv") / n_layer
    read = weights + kv / 2
    # A head tied to the embeddings is counted with them, whole: only its norm, of some KiB, is a component then.
    head = max(part(dense, "head"), part(dense, "embeddings"))
    room = BUDGETS[each.machine] * 2**30 - n_compute
    n_gpu = min(n_layer, int(room / (weights + kv)))
    head_on_gpu = n_gpu == n_layer and n_layer * (weights + kv) + head <= room
    seconds = n_gpu * read / gpu + (n_layer - n_gpu) * read / cpu + head / (gpu if head_on_gpu else cpu)
    return 1 / seconds, n_gpu, n_layer


def hybrid(hotset: Path, each: Measured, *words: str, model: Model | None = None) -> dict[str, Any]:
    """Our placement of a model on a machine, simulated."""
    budget = f"{BUDGETS[each.machine]}GiB"
    return plan(hotset, each, "--mode", "exact", "--simulate", "--vram-budget", budget, *words, model=model)


def assumed(model: Model, type_name: str, over_selection: float = OVER_SELECTION) -> list[str]:
    """Flags for the model's trained predictor, in the type of its weights."""
    n_bytes = model.predictor * 1e9 * BYTES_PER_WEIGHT[type_name]
    return ["--assume-predictor", f"{n_bytes:.0f}:{over_selection}"]


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def share(part_seconds: float, path: dict[str, float]) -> str:
    return f"{100 * part_seconds / sum(path.values()):.0f}"


def placed(planned: dict[str, Any]) -> str:
    """Where things are: layers with attention and with the detector on the card, share of active units there."""
    layers = planned["layers"]
    attention = sum(layer["attention"] == "device" for layer in layers)
    detect = sum(layer["detect"] == "device" or layer["device_predicts"] for layer in layers)
    return f"{attention}, {detect} of {len(layers)}, {100 * planned['gpu_active_share']:.0f} %"


def rows_of(hotset: Path, each: Measured) -> tuple[str, str]:
    """A row of the table of speeds and one of the table of placements."""
    guess = assumed(MODELS[each.model], each.type_name)
    exact, predicted = hybrid(hotset, each), hybrid(hotset, each, *guess)
    slow = [hybrid(hotset, each, *words, "--step-us", str(STEP_US))["simulated"]["tg_ts"] for words in ([], guess)]
    split, n_gpu, n_layer = layer_split(hotset, each, part(exact, "compute", "gpu"))
    ours = [planned["simulated"]["tg_ts"] for planned in (exact, predicted)]
    kind = {"f16": "FP16", "q4_0": "INT4"}[each.type_name]
    head = f"| {each.machine.replace('pc-', '').title()} | {kind} | {each.model} "
    speeds = (f"{head}| {number(split)} | {number(ours[0])} | {number(ours[1])} | {number(slow[0])}, {number(slow[1])} "
              f"| {ours[0] / split:.1f}× | {ours[1] / split:.1f}× | {each.llama_cpp:g} | {each.powerinfer:g} "
              f"| {each.powerinfer / each.llama_cpp:.1f}× |")  # fmt: skip
    cells = [f"{n_gpu} of {n_layer}"]
    for planned in (exact, predicted):
        path = planned["simulated"]["path_seconds"]
        cells += [placed(planned), number(planned["predicted"]["tg_ts"]),
                  ", ".join(share(path[key], path) for key in ("host", "device", "bus", "flags"))]  # fmt: skip
    return speeds, head + "| " + " | ".join(cells) + " |"


def variants(hotset: Path, each: Measured) -> str:
    """A row: mode predict as in the other tables, and with one assumption after the other made kinder."""
    model, small = MODELS[each.model], BYTES_PER_WEIGHT["q4_0"] / BYTES_PER_WEIGHT[each.type_name]
    four_bits = replace(model, predictor=model.predictor * small)
    sharp, all_three = replace(model, skew=model.sharper), replace(four_bits, skew=model.sharper)
    kinder = [(model, OVER_SELECTION), (model, 1), (four_bits, OVER_SELECTION), (sharp, OVER_SELECTION), (all_three, 1)]
    speeds = []
    for variant, over_selection in kinder:
        flags = assumed(variant, each.type_name, over_selection)
        speeds.append(number(hybrid(hotset, each, *flags, model=variant)["simulated"]["tg_ts"]))
    cells = [each.machine.replace("pc-", "").title(), each.model, f"{each.powerinfer:g}", *speeds]
    return "| " + " | ".join(cells) + " |"


def tables(hotset: Path) -> dict[str, str]:
    """The tables of speeds, of placements, and of what assumptions decide, by the names of their sections."""
    numbers = "layer split | exact | predict | both with slow steps | exact ratio | predict ratio"
    paper = "paper: llama.cpp | PowerInfer | ratio"
    speeds = [f"| PC | type | model | {numbers} | {paper} |", "|---|---|---|" + "---:|" * 9]
    ours = "exact: placed | limit | path % | predict: placed | limit | path %"
    places = [f"| PC | type | model | layers of the split | {ours} |", "|---|---|---|" + "---|" * 7]
    for each in PAPER:
        speed, place = rows_of(hotset, each)
        speeds.append(speed)
        places.append(place)
    kinds = "no false candidates | predictor in 4 bits | sharper skew | all three"
    kinder = [f"| PC | model | PowerInfer | predict | {kinds} |", "|---|---|" + "---:|" * 6]
    kinder += [variants(hotset, each) for each in PAPER if each.type_name == "f16"]
    sections = {"simulated-speeds": speeds, "simulated-placements": places, "simulated-assumptions": kinder}
    return {name: "\n".join(lines) for name, lines in sections.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hotset", type=Path, required=True, help="the hotset binary")
    parser.add_argument("--docs", type=Path, help="a document whose tables are replaced; without it they are printed")
    args = parser.parse_args()
    for name, text in tables(args.hotset).items():
        if args.docs:
            replace_section(args.docs, name, text)
        else:
            print(text + "\n")


if __name__ == "__main__":
    main()

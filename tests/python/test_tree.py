"""The shape of the source tree: who may include whom, and how long a file may be."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {".h", ".cpp", ".cu", ".cuh", ".py", ".pyi"}
FOLDERS = ["core", "cpu", "cuda", "python", "tools", "tests", "cmake"]
MAX_LINES = 800
GENERATED = {"core/unicode_tables.cpp"}  # by tools/gen_unicode_tables.py
PUBLIC = {
    "core/calibration.h", "core/engine.h", "core/engine_plan.h", "core/error.h", "core/judgement.h",
    "core/machine_rates.h",
    "core/placement.h", "core/powerinfer_convert.h", "core/profile.h", "core/quantize.h",
}  # fmt: skip

# docs/ARCHITECTURE.md, "Layers". A file belongs to the layer of its stem; the longest prefix counts.
LAYERS = [
    ["error", "log", "dtype", "half", "tensor", "kinds", "unicode", "unit_counts", "unpacked_block",
     "quantize", "json", "bit_planes", "knapsack"],
    ["arena", "atomic_file", "mmap_file", "gguf", "topology", "machine_rates"],
    ["op", "device", "devices", "fetched_weights", "handoff", "lint", "plan", "thread_pool"],
    ["architecture", "model_config", "weights", "rope", "tokenizer", "pre_tokenizer", "split", "sampler",
     "kv_cache", "model", "fingerprint", "powerinfer", "sidecar"],
    ["plan_builder", "lane_builder", "planner", "hybrid_planner", "placed_weights", "executor", "relayout",
     "placement", "predictor", "memory_plan", "prefix_cache", "sequence_file", "simulate", "streamed_units",
     "stream_choice", "weight_placer", "adaptation", "unit_exchange"],
    ["engine", "calibration", "generation", "judgement", "kld", "perplexity", "profile", "quantize_mixture", "quantize_model",
     "hybrid_setup", "placement_choice", "scored_chunks", "synth", "unit_order", "version"],
]
# What a layer of core/ may include: L3 knows no devices, so not L2.
ALLOWED = {0: {0}, 1: {0, 1}, 2: {0, 1, 2}, 3: {0, 1, 3}, 4: {0, 1, 2, 3, 4}, 5: {0, 1, 2, 3, 4, 5}}
BACKEND_LAYERS = {0, 1, 2}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
INTRINSICS = re.compile(r"(^|/)(\w*mmintrin|x86intrin|arm_neon|cuda\w*|cuda_runtime\w*|Python|nanobind/.*)(\.h)?$")


def files(*folders):
    """All source files below the given folders of the repository, as paths relative to its root."""
    found = []
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SOURCES and path.is_file() and "__pycache__" not in path.parts:
                found.append(path.relative_to(ROOT).as_posix())
    return found


def includes(file):
    """(is our own, path) of each #include of a file."""
    return [(mark == '"', path) for mark, path in INCLUDE.findall((ROOT / file).read_text())]


def layer_of(path):
    """Layer of a file of core/; a stem that is in no layer takes that of its longest listed beginning."""
    stem = Path(path).stem
    best = max(
        ((len(name), layer) for layer, names in enumerate(LAYERS) for name in names
         if stem == name or stem.startswith(name + "_")),
        default=None,
    )
    assert best is not None, f"{path}: give it a layer in {Path(__file__).name} and in docs/ARCHITECTURE.md"
    return best[1]


def violations_of(file, own_includes):
    """Includes of our own headers that a file may not have."""
    bad = []
    folder = file.split("/")[0]
    for path in own_includes:
        target = path.split("/")[0]
        if folder == "core":
            ok = target == "core" and layer_of(path) in ALLOWED[layer_of(file)]
        elif folder in ("cpu", "cuda"):
            ok = target == folder or (target == "core" and layer_of(path) in BACKEND_LAYERS)
        elif folder in ("python", "tools"):
            ok = path in PUBLIC or (target not in ("core", "cpu", "cuda"))
        else:
            ok = True
        if not ok:
            bad.append(path)
    return bad


@pytest.mark.parametrize("file", files("core", "cpu", "cuda"))
def test_includes_follow_the_layers(file):
    own = [path for is_own, path in includes(file) if is_own]
    assert violations_of(file, own) == []


# Benchmarks of kernels and of the machine look below the public header on purpose.
BELOW_THE_SURFACE = {
    "tools/bench_handoff.cpp", "tools/bench_kernels.cpp", "tools/bench_load.cpp", "tools/bench_machine.cpp",
    "tools/machine.cpp",
}  # fmt: skip


@pytest.mark.parametrize("file", [f for f in files("tools", "python") if not f.endswith((".py", ".pyi"))])
def test_tools_and_bindings_use_the_public_header(file):
    own = [path for is_own, path in includes(file) if is_own]
    if file not in BELOW_THE_SURFACE:
        assert violations_of(file, own) == []


@pytest.mark.parametrize("file", files("core", "cpu"))
def test_foreign_headers_stay_in_their_folder(file):
    foreign = [path for _, path in includes(file) if INTRINSICS.search(path)]
    if file.startswith("cpu/"):
        foreign = [path for path in foreign if "mmintrin" not in path]
    assert foreign == []


@pytest.mark.parametrize("file", files("core", "cpu"))
def test_build_switches_stay_out_of_headers(file):
    if file.endswith(".h"):
        assert not re.search(r"^\s*#\s*if.*HOTSET_(CUDA|PYTHON|TESTS|FUZZ)", (ROOT / file).read_text(), re.MULTILINE)


def test_instruction_set_files_include_no_standard_library():
    """A template of the standard library compiled for AVX-512 could be the copy that the linker keeps."""
    allowed = {"cstddef", "cstdint", "cstring", "immintrin.h"}
    seen = 0
    for file in files("cpu"):
        if not re.match(r"cpu/((block|block_k|float|plane)_(avx2|avx512)|block_amx)\.cpp$", file):
            continue
        pending, done = [file], set()
        while pending:
            each = pending.pop()
            if each in done:
                continue
            done.add(each)
            for is_own, path in includes(each):
                if is_own:
                    pending.append(path)
                else:
                    assert path in allowed, f"{each} (through {file}) includes <{path}>"
        seen += 1
    assert seen == 9


@pytest.mark.parametrize("file", files(*FOLDERS))
def test_files_are_short(file):
    n_lines = len((ROOT / file).read_text().splitlines())
    assert file in GENERATED or n_lines <= MAX_LINES


def test_every_own_include_exists():
    for file in files(*FOLDERS):
        if file.endswith((".py", ".pyi")):
            continue
        for is_own, path in includes(file):
            if is_own:
                assert (ROOT / path).exists() or (ROOT / file).parent.joinpath(path).exists(), f"{file}: {path}"


def test_the_checks_can_fail():
    assert layer_of("core/gguf_parser.cpp") == 1
    assert layer_of("core/tokenizer_gguf.cpp") == 3
    assert layer_of("core/engine_impl.h") == 5
    assert violations_of("core/half.h", ["core/gguf.h"])
    assert violations_of("core/weights.h", ["core/op.h"])
    assert violations_of("core/plan.h", ["core/model_config.h"])
    assert violations_of("core/engine.cpp", ["cpu/kernels.h"])
    assert violations_of("cpu/isa.cpp", ["core/model.h"])
    assert violations_of("cuda/no_cuda.cpp", ["cpu/kernels.h"])
    assert violations_of("tools/main.cpp", ["core/gguf.h"])
    assert not violations_of("tools/main.cpp", ["core/engine.h", "tools/args.h"])
    with pytest.raises(AssertionError):
        layer_of("core/something_new.h")

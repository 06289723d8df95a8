"""Everything that a machine with an NVIDIA card can tell about hotset, in one command and within bounds of time.

    python3 tools/gpu_check.py --out DIR [--build-dir build/gpu] [--parts build,ops,..] [--again] [--budget SECONDS]

Results lie in DIR: gpu_check.json, gpu_check.md and a log for each part. A part that has passed is not run again
(unless --again), so that a run that was cut off goes on where it stopped. Exit code 1 when a part failed or did not end
in time.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SANITIZED = "cuda kernels*"  # small, and every kind of access


def configure_and_build(build):
    """Commands that build what the other parts run, for the card of this machine alone."""
    configure = ["cmake", "-S", str(ROOT), "-B", build, "-DCMAKE_BUILD_TYPE=Release",
                 "-DHOTSET_CUDA=ON", "-DHOTSET_TESTS=ON", "-DCMAKE_CUDA_ARCHITECTURES=native"]  # fmt: skip
    if shutil.which("ninja"):
        configure += ["-G", "Ninja"]
    targets = ["hotset_tests", "hotset_cli", "gpu_probe"]
    return [configure, ["cmake", "--build", build, "-j", str(os.cpu_count()), "--target", *targets]]


def parts_of(build, out):
    """name: (seconds at most, commands, environment). The order is that of trust: later parts need the earlier ones."""
    tests, hotset = f"{build}/tests/hotset_tests", f"{build}/bin/hotset"
    on_card = {"HOTSET_TEST_DEVICE": "cuda"}
    sanitizer = ["compute-sanitizer", "--error-exitcode", "9"]
    bench = [hotset, "bench", "-p", "64", "-n", "64", "--json"]
    return {
        "build": (1500, configure_and_build(build), {}),
        "machine": (60, [["nvidia-smi"], [hotset, "doctor", "--json"]], {}),
        "ops": (240, [[tests, "-tc=cuda kernels*,cpu phases*"]], on_card),
        "hybrid": (300, [[tests, "-tc=hybrid*,sequences*"]], on_card | {"HOTSET_HYBRID_STEPS": "200"}),
        "memcheck": (300, [[*sanitizer, "--tool", "memcheck", tests, f"-tc={SANITIZED}"]], on_card),
        "racecheck": (300, [[*sanitizer, "--tool", "racecheck", tests, f"-tc={SANITIZED}"]], on_card),
        "synccheck": (300, [[*sanitizer, "--tool", "synccheck", tests, f"-tc={SANITIZED}"]], on_card),
        "probe": (120, [[f"{build}/gpu_probe", "--json", f"{out}/gpu_probe.json"]], {}),
        "bench": (180, [[*bench, "--device", device] for device in ("cpu", "cuda")], {}),
    }  # fmt: skip


def run_part(name, seconds, commands, environment, out):
    """Runs the commands one after the other until one fails. Returns the part's record."""
    record = {"part": name, "state": "passed", "commands": [" ".join(command) for command in commands]}
    start = time.monotonic()
    log = out / f"{name}.log"
    with log.open("w") as sink:
        for command in commands:
            left = seconds - (time.monotonic() - start)
            try:
                done = subprocess.run(command, cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT, timeout=max(left, 1),
                                      env=os.environ | environment, check=False)  # fmt: skip
            except subprocess.TimeoutExpired:
                record["state"] = f"did not end within {round(seconds)} s"
            except OSError as error:
                record["state"] = f"did not start: {error}"
            else:
                if done.returncode != 0:
                    record["state"] = f"failed with exit code {done.returncode}"
            if record["state"] != "passed":
                break
    record["seconds"] = round(time.monotonic() - start, 1)
    record["end_of_log"] = log.read_text(errors="replace").splitlines()[-15:]
    return record


def write_reports(out, records):
    """The same as JSON and as Markdown, after every part."""
    (out / "gpu_check.json").write_text(json.dumps(list(records.values()), indent=1) + "\n")
    lines = ["# GPU check", "", "| part | state | seconds |", "|---|---|---|"]
    lines += [f"| {each['part']} | {each['state']} | {each['seconds']} |" for each in records.values()]
    for each in records.values():
        lines += ["", f"## {each['part']}", "", "```", *each["commands"], "", *each["end_of_log"], "```"]
    (out / "gpu_check.md").write_text("\n".join(lines) + "\n")


def main(words):
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--build-dir", default="build/gpu")
    parser.add_argument("--parts", default="", help="names, with commas between; all by default")
    parser.add_argument("--again", action="store_true", help="also run parts that have passed")
    parser.add_argument("--budget", type=float, default=3000, help="seconds for all parts together")
    args = parser.parse_args(words)
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    parts = parts_of(args.build_dir, args.out)
    asked = args.parts.split(",") if args.parts else list(parts)
    unknown = [name for name in asked if name not in parts]
    if unknown:
        names = ", ".join(parts)
        parser.error(f"[gpu_check] --parts: expected some of {names}, got {', '.join(unknown)}; correct them")
    stored = args.out / "gpu_check.json"
    records = {each["part"]: each for each in json.loads(stored.read_text())} if stored.exists() else {}
    end = time.monotonic() + args.budget
    for name in asked:
        if not args.again and records.get(name, {}).get("state") == "passed":
            continue
        seconds, commands, environment = parts[name]
        left = end - time.monotonic()
        if left < 5:
            records[name] = {"part": name, "state": "no time left", "commands": [], "seconds": 0, "end_of_log": []}
        else:
            records[name] = run_part(name, min(seconds, left), commands, environment, args.out)
        write_reports(args.out, records)
        print(f"{name}: {records[name]['state']} ({records[name]['seconds']} s)", flush=True)
    return 0 if all(records[name]["state"] == "passed" for name in asked) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

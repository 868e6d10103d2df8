"""`make bench`, or `make bench M=sequence`: prints a table and writes benchmarks/latest.json.

`python -m benchmarks calibrate` says how fast this machine is; `python -m benchmarks compare --base COMMIT sequence` measures an older
commit and this code in turn; `python -m benchmarks counts` says what an instance costs in statements, bytes and commands, and
`python -m benchmarks compare --base COMMIT counts` both.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measures import MEASURES, Measure
from benchmarks.rig import Rig

LATEST = Path(__file__).parent / "latest.json"


def main(names: list[str]) -> int:
    if names[:1] == ["calibrate"]:
        from benchmarks import calibrate

        return calibrate.main()
    if names == ["counts"]:
        from benchmarks import counts

        print(json.dumps(counts.count(), indent=2))
        return 0
    if names[:1] == ["compare"]:
        from benchmarks import compare

        return compare.main(names[1:])
    unknown = [name for name in names if name not in MEASURES]
    if unknown:
        print(f"no measure {', '.join(unknown)}; there are {', '.join(MEASURES)}")
        return 2
    rig = Rig()
    done: list[Measure] = []
    try:
        rig.start()
        for name in names or list(MEASURES):
            print(f"measuring {name} …", flush=True)
            done.append(MEASURES[name](rig))
            print(f"  {done[-1].ours:.2f} {done[-1].unit}  {done[-1].peers or ''} {done[-1].detail}", flush=True)
    finally:
        rig.stop()
    show(done)
    write(done)
    return 0 if all(m.met for m in done) else 1


def write(done: list[Measure]) -> None:
    """Figures of this run take the place of older ones of the same measure."""
    fresh = {m.measure: m.to_json() for m in done}
    older = json.loads(LATEST.read_text()) if LATEST.exists() else []
    kept = [fresh.pop(m["measure"], m) for m in older]
    LATEST.write_text(json.dumps([*kept, *fresh.values()], indent=2, ensure_ascii=False) + "\n")


def show(done: list[Measure]) -> None:
    table = Table("measure", "ours", "peers in the same run", "goal", "met")
    for m in done:
        peers = ", ".join(f"{name} {figure:,.0f}" for name, figure in m.peers.items())
        detail = ", ".join(f"{key} {value}" for key, value in m.detail.items())
        table.add_row(m.measure, f"{m.ours:,.2f} {m.unit}", "\n".join(filter(None, (peers, detail))), m.goal, "yes" if m.met else "NO")
    Console(width=160).print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

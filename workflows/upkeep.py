"""What goes on behind everything else, by the clock: a batch, a check-up, data kept the same in two places, and what is old removed.

`config/schedules/upkeep.yml` has a schedule for each, switched off; `orchestrator schedules resume nightly-batch` switches one on.
All files are below OUTPUT_DIR.

orchestrator start process-inbox
orchestrator start check-up
orchestrator start mirror-folder --input '{"source": "processed", "target": "mirror"}'
orchestrator start remove-old-files --input '{"folders": ["mirror"], "olderThanDays": 7, "dryRun": true}'
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from orchestrator import StepContext, Terminal, Workflow, step
from orchestrator.app import runtime
from orchestrator.store import queries, reports
from orchestrator.workflows.etl import clean
from orchestrator.workflows.files import below, write

DAY_S = 86400
Folder = Annotated[str, Field(min_length=1, description="below OUTPUT_DIR")]


class Inbox(BaseModel, extra="forbid"):
    inbox: Folder = "inbox"


class Folders(BaseModel, extra="forbid"):
    source: Folder
    target: Folder


class Old(BaseModel, extra="forbid"):
    folders: list[Folder] = Field(min_length=1)
    older_than_days: float = Field(default=30, gt=0, le=36500, alias="olderThanDays")
    dry_run: bool = Field(default=False, alias="dryRun", description="say what would go, and leave it")


class Nothing(BaseModel, extra="forbid"):
    pass


@step(type="upkeep.list_inbox", timeout="60s")
def list_inbox(data: dict[str, Any]) -> dict[str, Any]:
    inbox = below(data.get("inbox", "inbox"))
    inbox.mkdir(parents=True, exist_ok=True)
    return {"files": sorted(str(path.relative_to(below())) for path in inbox.glob("*.jsonl") if _is_plain(path))}


@step(type="upkeep.process_file", timeout="10m")
def process_file(file: str) -> dict[str, Any]:
    """Its records cleaned in `processed/`, the file itself put away. Tried again after it was put away, it is not done twice."""
    source = below(file)
    done, refused = source.parent / "done" / source.name, source.parent / "refused" / source.name
    target = below(f"processed/{source.name}")
    if not source.exists():
        if target.exists() and done.exists():
            return {"file": file, "records": len(target.read_text("utf-8").splitlines())}
        if refused.exists():
            return {"file": file, "refused": Path(f"{refused}.why").read_text("utf-8").strip()}
        raise Terminal(f"'{file}' is gone, and was not processed")
    try:
        rows = clean(_records(source))
        write(str(target.relative_to(below())), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    except ValueError as error:
        write(str(refused.relative_to(below())) + ".why", f"{error}\n")
        source.replace(refused)
        return {"file": file, "refused": str(error)}
    done.parent.mkdir(parents=True, exist_ok=True)
    source.replace(done)
    return {"file": file, "records": len(rows)}


def _records(path: Path) -> list[dict[str, Any]]:
    found = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, parse_constant=_refuse)
        except (ValueError, RecursionError):
            record = None
        match record:
            case dict():
                found.append(record)
            case _:
                raise ValueError(f"line {number} is no JSON object")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


@step(type="upkeep.check_up", timeout="5m")
def check_up(context: StepContext) -> dict[str, Any]:
    """How much there is of what, and a look at the tables for who plans queries on them."""
    database = runtime().database
    instance = database.patiently(lambda c: queries.instance(c, context.instance_id))
    assert instance is not None
    tenant, began = str(instance["tenant"]), dt.datetime.fromisoformat(instance["created_at"]).astimezone(dt.UTC)
    told = {
        "at": began.isoformat(),
        "instances": database.patiently(lambda c: reports.by_state(c, tenant)),
        "endedWithinADay": database.patiently(lambda c: reports.ended_by_workflow(c, tenant, began - dt.timedelta(days=1), began)),
        "databaseBytes": database.patiently(reports.size),
        "outputBytes": sum(path.stat().st_size for path in _files(below())),
    }
    database.patiently(reports.analyze)
    path = write(f"maintenance/{began.date().isoformat()}.json", json.dumps(told, indent=2) + "\n")
    return {"path": path, **told}


@step(type="upkeep.mirror", timeout="30m")
def mirror(source: str, target: str) -> dict[str, Any]:
    """The target holds what the source holds: new and changed files are copied, others removed, the same left alone."""
    here, there = below(source), below(target)
    if here == there or here in there.parents or there in here.parents:
        raise Terminal(f"'{source}' and '{target}' lie within each other")
    if not here.is_dir():
        raise Terminal(f"there is no folder '{source}' below OUTPUT_DIR")
    wanted = {path.relative_to(here): path for path in _files(here)}
    held = {path.relative_to(there): path for path in _files(there)}
    copied = [name for name, path in wanted.items() if name not in held or _digest(path) != _digest(held[name])]
    for name in copied:
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        part = (there / name).with_name(f".new-{name.name}")
        shutil.copy2(wanted[name], part)
        part.replace(there / name)
    gone = [name for name in held if name not in wanted]
    for name in gone:
        held[name].unlink(missing_ok=True)
    return {"copied": sorted(map(str, copied)), "removed": sorted(map(str, gone)), "same": len(wanted) - len(copied)}


@step(type="upkeep.remove_old", timeout="30m")
def remove_old(folders: list[str], data: dict[str, Any]) -> dict[str, Any]:
    before = time.time() - data.get("olderThanDays", 30) * DAY_S
    old = sorted({path for folder in folders for path in _files(below(folder)) if path.stat().st_mtime < before})
    size = sum(path.stat().st_size for path in old)
    if not data.get("dryRun"):
        for path in old:
            path.unlink(missing_ok=True)
    return {"removed": [str(path.relative_to(below())) for path in old], "bytes": size, "dryRun": bool(data.get("dryRun"))}


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if _is_plain(path))


def _is_plain(path: Path) -> bool:
    """Links may lead anywhere; what begins with a dot is being written."""
    return path.is_file() and not path.is_symlink() and not path.name.startswith(".")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


batch = Workflow("process-inbox", "1.0", namespace="upkeep", title="Files of records, cleaned and put away", input=Inbox)
batch.then(list_inbox).foreach(".files", each="file", parallel=True, name="process").do(lambda each: each.then(process_file))

maintenance = Workflow("check-up", "1.0", namespace="upkeep", title="How much there is of what", input=Nothing)
maintenance.then(check_up)

sync = Workflow("mirror-folder", "1.0", namespace="upkeep", title="One folder holds what another holds", input=Folders)
sync.then(mirror)

cleanup = Workflow("remove-old-files", "1.0", namespace="upkeep", title="Files that are old are removed", input=Old)
cleanup.then(remove_old)

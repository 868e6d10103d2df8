"""Schedules as people handle them: made, changed, paused, resumed, run now, backfilled, deleted; and how each is doing."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.definition.parsing import Source
from orchestrator.engine import scheduling
from orchestrator.engine.catalog import discover_schedules, folders
from orchestrator.engine.runtime import Runtime
from orchestrator.errors import Fault, Invalid, NotFound, OrchestratorError, Taken
from orchestrator.schedule import times
from orchestrator.schedule.spec import Spec, changed, read_schedule, read_schedules
from orchestrator.store import findings, instances, locks, queries, schedules
from orchestrator.store.connection import Connection
from orchestrator.store.schedules import Row, Schedule

logger = logging.getLogger("orchestrator.scheduling")

MOST_BACKFILLED = 1000
FILE = "schedule-file"


class Timetable:
    """All schedules of a runtime. Every act is audited; none needs a restart of anything."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.database = runtime.database

    # ── making and changing ─────────────────────────────────────────────────────────────────────────────────────────

    def add(self, config: Any, *, tenant: str = "default", actor: str = "anonymous", source: str = "api", origin: str = "api") -> Spec:
        """A new one; `Taken` when its id is another's already."""
        spec = read_schedule(config)
        self._put(spec, tenant, actor, source, origin, only_new=True)
        return spec

    def update(self, name: str, config: Any, *, tenant: str = "default", actor: str = "anonymous", source: str = "api") -> Spec:
        """Changed as a whole; its id cannot change. A new time holds at once."""
        held = self._own(tenant, name)
        spec = read_schedule({"id": name, **config} if isinstance(config, dict) else config)
        if spec.id != name:
            raise Invalid([Fault("/id", f'Expected "{name}", the id of this schedule, got "{spec.id}".')], "schedule")
        if not _says_enabled(config):
            spec = changed(spec, enabled=held.enabled)
        self._put(spec, tenant, actor, source, "api" if held.origin.startswith("file:") else held.origin)
        return spec

    def put(self, spec: Spec, *, tenant: str = "default", actor: str = "anonymous", source: str = "api") -> None:
        """Make it, or change it as a whole."""
        if self.database.patiently(lambda c: schedules.find(c, tenant, spec.id)) is not None:
            self._own(tenant, spec.id)
        self._put(spec, tenant, actor, source, "api")

    def put_files(self, read: Mapping[str, Any], faulty: Mapping[str, str], *, forget: bool) -> list[str]:
        """The schedules of these files hold; what a faulty file held before stays. Gives the ids that were seen.

        Each file is by itself. `forget`: what stood in files that are gone is taken back.
        """
        wrong = dict(faulty)
        present = {*read, *faulty}
        found: list[str] = []
        for file, data in read.items():
            try:
                found += self.put_file(file, data, present)
            except OrchestratorError as error:
                wrong[file] = str(error)
        for file, reason in wrong.items():
            logger.error("schedules of %s are not read, those it held before stay: %s", file, reason)
        self.database.patiently(lambda c: self._note_files(c, wrong))
        return [*found, *(self._forget_gone(present) if forget else ())]

    def faulty_files(self, tenant: str = "default") -> list[dict[str, str]]:
        """Files of schedules that could not be read, as they are now. They are the default tenant's."""
        if tenant != "default":
            return []
        found = self.database.patiently(lambda c: findings.listing(c, tenant))
        return [{"file": one["subject"], "message": one["message"]} for one in found if one["kind"] == FILE]

    def _roots(self) -> list[str]:
        """Where files may stand, as far as this process sees these places: of one that is not here nothing is known."""
        settings = self.runtime.settings
        here = [f"file:{name}/" for name in settings.workflows if folders(name)]
        own = Path(settings.config_dir) / "schedules"
        return [*here, *([f"file:{own.name}/"] if own.is_dir() else [])]

    def _note_files(self, c: Connection, wrong: Mapping[str, str]) -> None:
        for file, reason in wrong.items():
            findings.note(c, FILE, file, reason)
        findings.clear_others(c, FILE, list(wrong))

    def _forget_gone(self, present: Collection[str]) -> list[str]:
        def act(c: Connection) -> list[str]:
            with c.transaction():
                gone = schedules.forget_gone(c, self._roots(), [f"file:{file}" for file in present])
                for name, origin in gone:
                    about = {"schedule": name, "tenant": "default", "file": origin.removeprefix("file:")}
                    instances.audit(c, "file", "delete-schedule", "file", None, None, about)
                return [name for name, _ in gone]

        return self.database.patiently(act)

    def put_file(self, file: str, data: Any, present: Collection[str] = ()) -> list[str]:
        """The schedules of a file are these and no others. One whose own file is not among those present moves to this one."""
        specs = read_schedules(data, Source(file))
        origin = f"file:{file}"
        for spec in specs:
            held = self.database.patiently(lambda c, s=spec: schedules.find(c, "default", s.id))  # type: ignore[misc]
            if held is None:
                self._put(spec, "default", "file", "file", origin)
                continue
            elsewhere = held.origin.removeprefix("file:") if held.origin.startswith("file:") and held.origin != origin else None
            if elsewhere is not None and elsewhere in present:
                raise Invalid(
                    [Fault("/id", f'The schedule "{spec.id}" stands in {elsewhere}, too.', "Give one of them another id.")], "schedule"
                )
            if (held.origin == origin and held.about != spec.as_json()) or elsewhere is not None:
                # Who paused it by hand meant it; who writes `enabled` anew, too.
                enabled = held.enabled if held.about["enabled"] == spec.enabled else spec.enabled
                self._put(spec, "default", "file", "file", origin, enabled=enabled)
        gone = self.database.patiently(lambda c: schedules.forget_files(c, origin, [spec.id for spec in specs]))
        return [*(spec.id for spec in specs), *gone]

    def _put(
        self, spec: Spec, tenant: str, actor: str, source: str, origin: str, *, only_new: bool = False, enabled: bool | None = None
    ) -> None:
        namespace, version, is_on = spec.namespace or "default", spec.version or "", spec.enabled if enabled is None else enabled

        def act(c: Connection) -> bool:
            with c.transaction():
                planned = times.first(spec.when, queries.now(c)) if is_on else None
                row = Row(
                    tenant=tenant, name=spec.id, origin=origin, enabled=is_on, namespace=namespace, workflow=spec.workflow,
                    version=version, kind=spec.kind, when=spec.when, about=spec.as_json(), planned=planned,
                    next=None if planned is None else times.jittered(spec.id, planned, spec.jitter_s),
                )  # fmt: skip
                done = schedules.put(c, row, only_new=only_new)
                if done:
                    instances.audit(
                        c, actor, "put-schedule", source, None, None, {"schedule": spec.id, "tenant": tenant, "spec": spec.as_json()}
                    )
                return done

        if not self.database.patiently(act):
            raise Taken("schedule", spec.id)

    def delete(self, name: str, *, tenant: str = "default", actor: str = "anonymous", source: str = "api") -> None:
        held = self._own(tenant, name)
        if held.origin.startswith("file:") and self._stands_in_a_file(held.origin.removeprefix("file:")):
            raise Invalid(
                [
                    Fault(
                        "/id",
                        f'The schedule "{name}" is written in {held.origin[5:]} and would come back.',
                        "Delete it there, or pause it.",
                    )
                ],
                "schedule",
            )

        def act(c: Connection) -> None:
            with c.transaction():
                if schedules.delete(c, tenant, name):
                    instances.audit(c, actor, "delete-schedule", source, None, None, {"schedule": name, "tenant": tenant})

        self.database.patiently(act)

    def enable(self, name: str, enabled: bool, *, tenant: str = "default", actor: str = "anonymous", source: str = "api") -> None:
        """Paused, it has no next time, through restarts too; resumed, it goes on from the present, without a burst."""
        self.find(name, tenant)

        def act(c: Connection) -> None:
            with c.transaction():
                locks.hold(c, "schedules", tenant, name)
                held = schedules.find(c, tenant, name, lock=True)
                if held is None or held.enabled == enabled:
                    return
                spec, now = scheduling.spec_of(held), queries.now(c)
                planned = None
                if enabled:
                    planned = now if held.kind == "after" else times.first(spec.when, now) if held.kind != "on" else None
                schedules.enable(
                    c, tenant, name, enabled, planned, None if planned is None else times.jittered(name, planned, spec.jitter_s)
                )
                verb = "resume-schedule" if enabled else "pause-schedule"
                instances.audit(c, actor, verb, source, None, None, {"schedule": name, "tenant": tenant})

        self.database.patiently(act)

    # ── running ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def run_now(self, name: str, *, tenant: str = "default", actor: str = "anonymous", source: str = "api") -> dict[str, Any]:
        """One run out of turn; the schedule goes on as planned."""
        held = self.find(name, tenant)
        self._audit(actor, "run-schedule", source, {"schedule": name, "tenant": tenant})
        return scheduling.fire_now(self.runtime, held, [held.now], f"hand:{actor}")[0]

    def backfill(
        self, name: str, start: Any, end: Any, *, tenant: str = "default", actor: str = "anonymous", source: str = "api"
    ) -> list[dict[str, Any]]:
        """A run for each moment of a range (both ends included) that has none. A range that is given again starts nothing."""
        held = self.find(name, tenant)
        spec = scheduling.spec_of(held)
        zone = spec.when.get("timezone", "UTC")
        try:
            first, last = times.moment(start, zone), times.moment(end, zone)
        except times.BadTime as error:
            raise Invalid([Fault("range", f"{start!r} to {end!r}: it {error}")], "backfill") from None
        if not first <= last <= held.now:
            raise Invalid([Fault("range", "must end in the past, and not before it begins")], "backfill")
        moments = times.within(spec.when, held.planned, first, last, MOST_BACKFILLED + 1)
        if len(moments) > MOST_BACKFILLED:
            raise Invalid([Fault("range", f"holds more than {MOST_BACKFILLED:,} moments")], "backfill")
        self._audit(actor, "backfill-schedule", source, {"schedule": name, "tenant": tenant, "from": first, "to": last})
        return scheduling.fire_now(self.runtime, held, moments, f"backfill:{actor}")

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def find(self, name: str, tenant: str = "default") -> Schedule:
        found = self.database.patiently(lambda c: schedules.find(c, tenant, name))
        if found is None:
            raise NotFound("schedule", name, "`orchestrator schedules` lists them")
        return found

    def all(self, tenant: str | None = "default", workflow: str | None = None, namespace: str | None = None) -> list[dict[str, Any]]:
        found = self.database.patiently(lambda c: schedules.all_schedules(c, tenant, workflow, namespace))
        running = self.database.patiently(lambda c: schedules.running(c, [one.id for one in found]))
        return [self._shown(one, running.get(one.id, ())) for one in found]

    def status(self, name: str, tenant: str = "default", upcoming: int = 5) -> dict[str, Any]:
        held = self.find(name, tenant)
        running = self.database.patiently(lambda c: schedules.running(c, [held.id]))
        shown = self._shown(held, running.get(held.id, ()))
        spec = scheduling.spec_of(held)
        if held.enabled and held.planned is not None and held.kind in ("cron", "every"):
            moments: list[float] = []
            at: float | None = held.planned
            while at is not None and len(moments) < upcoming:
                moments.append(at)
                at = times.following(spec.when, at, at)
            shown["upcoming"] = [times.iso(moment) for moment in moments]
        else:
            shown["upcoming"] = [times.iso(held.planned)] if held.enabled and held.planned is not None else []
        return shown

    def history(self, name: str, tenant: str = "default", limit: int = 50, before: float | None = None) -> list[dict[str, Any]]:
        held = self.find(name, tenant)
        rows = self.database.patiently(lambda c: schedules.history(c, held.id, limit, before))
        return [
            {
                "scheduledAt": times.iso(row["planned"]), "firedAt": times.iso(row["at"]), "outcome": row["outcome"],
                "instanceId": row["instance_id"], "state": row["state"], "reason": row["reason"], "by": row["by"], "retries": row["retries"],
            }
            for row in rows
        ]  # fmt: skip

    def stats(self, tenant: str | None = "default") -> dict[str, int]:
        found = self.all(tenant)
        return {
            "total": len(found),
            "active": sum(one["enabled"] for one in found),
            "running": sum(one["isRunning"] for one in found),
            "runs": sum(one["runCount"] for one in found),
            "skipped": sum(one["skipCount"] for one in found),
            "errors": sum(one["errorCount"] for one in found),
        }

    def _shown(self, one: Schedule, running: Sequence[str]) -> dict[str, Any]:
        spec = scheduling.spec_of(one)
        return {
            "id": one.name,
            "name": spec.name or one.name,
            "description": spec.description,
            "tenant": one.tenant,
            "source": one.origin,
            "workflow": {"id": one.workflow, "version": one.version or None, "nameSpace": one.namespace},
            "schedule": {**_when_shown(one), "enabled": one.enabled},
            "enabled": one.enabled,
            "properties": spec.input,
            "retry": {"attempts": spec.retry_attempts, "delay": spec.retry_delay_s},
            "timeout": spec.timeout_s,
            "maxConcurrent": spec.max_concurrent,
            "overlap": spec.overlap,
            "catchup": spec.catchup,
            "catchupWindow": spec.catchup_window_s,
            "jitter": spec.jitter_s,
            "lastRun": None if one.last is None else times.iso(one.last),
            "lastInstance": one.last_instance,
            "nextRun": None if one.next is None else times.iso(one.next),
            "runCount": one.starts,
            "skipCount": one.skips,
            "errorCount": one.errors,
            "isRunning": bool(running),
            "running": list(running),
        }

    def _stands_in_a_file(self, file: str) -> bool:
        settings = self.runtime.settings
        files = discover_schedules(settings.workflows, Path(settings.config_dir) / "schedules")
        return file in files.read or file in files.faulty

    def _own(self, tenant: str, name: str) -> Schedule:
        held = self.find(name, tenant)
        if held.origin == "definition":
            raise Invalid([Fault("id", f"'{name}' is part of its workflow's definition, and changes with it")], "schedule")
        if held.origin == "builtin":
            raise Invalid([Fault("id", f"'{name}' is built in; it can be paused")], "schedule")
        return held

    def _audit(self, actor: str, action: str, source: str, detail: dict[str, Any]) -> None:
        self.database.patiently(lambda c: instances.audit(c, actor, action, source, None, None, detail))


def _says_enabled(config: Any) -> bool:
    return isinstance(config, dict) and ("enabled" in config or "enabled" in (config.get("schedule") or {}))


def _when_shown(one: Schedule) -> dict[str, Any]:
    if one.kind == "at":
        return {"at": times.iso(float(one.spec["at"]))}
    return dict(one.spec)

"""What every worker does beside walking, and what one of them does for all.

Each worker's `Office` (a thread in its parent process) watches the worker's own children, signs that it lives, and stands for two
*posts*, each a short lease in Postgres: `keeper` (recovery, the outbox, events, limits, files, retention) and `timers` (timers and
schedules). Who holds a post runs its *lanes*: threads that do its *chores*, one file each. Another worker takes a post over within
seconds when its holder falls silent. Two holders at once would only waste effort: everything chores do is claimed row by row.

A fault of one chore is that chore's alone (`barrier.py`): it backs off, is counted, logged once, and kept as a finding that
`/health` and `doctor` show, while every other chore goes on.
"""

#!/bin/sh
# Redis with its password from a file: on a command line others could read it. Any characters but line ends.
set -eu
password=$(sed 's/[\\"]/\\&/g' "${REDIS_PASSWORD_FILE:-/run/secrets/redis_password}")
[ -n "$password" ] || { echo "the password in ${REDIS_PASSWORD_FILE:-/run/secrets/redis_password} is empty" >&2; exit 1; }
# In this shell's place, so that a signal reaches it. Evicted messages are lost time; nothing else is lost with Redis.
exec "${REDIS_SERVER:-redis-server}" - "$@" << CONFIGURATION
requirepass "$password"
appendonly yes
maxmemory-policy noeviction
dir ${REDIS_DIR:-/data}
CONFIGURATION

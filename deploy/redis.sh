#!/bin/sh
# Redis with its password from a file: on a command line others could read it. Any characters but line ends.
set -eu
password=$(sed 's/[\\"]/\\&/g' "${REDIS_PASSWORD_FILE:-/run/secrets/redis_password}")
[ -n "$password" ] || { echo "the password in ${REDIS_PASSWORD_FILE:-/run/secrets/redis_password} is empty" >&2; exit 1; }
# Evicted messages are lost time; nothing else is lost with Redis.
printf 'requirepass "%s"\nappendonly yes\nmaxmemory-policy noeviction\ndir %s\n' "$password" "${REDIS_DIR:-/data}" | exec "${REDIS_SERVER:-redis-server}" - "$@"

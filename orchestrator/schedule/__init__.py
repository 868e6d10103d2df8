"""When workflows start by themselves: what a schedule says (`spec`), which moments that means (`times`), and its mirror in
RedBeat (`mirror`). Postgres has the truth; `engine/scheduling.py` fires."""

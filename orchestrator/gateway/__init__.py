"""The embedded gateway: a reverse proxy whose hostnames, ports and certificates change while it serves. No restart, ever.

server.py     the process: shared listeners, each hostname's own, the admin API
hosts.py      what is served: hostnames, certificates, requests under way; kept in a file
passing.py    one request from a client to its target and back; streams and WebSockets
admin.py      the admin API, on loopback
"""

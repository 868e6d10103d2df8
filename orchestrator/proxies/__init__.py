"""Reverse proxies as resources with a life cycle: configured by an application, brought about by workflows.

    application.py     what people configure: `proxy:{hostname}` and an event; knows nothing of instances
    certificates.py    certificates and their keys, issued or imported, announced by an event
    registry.py        which proxies there are, in which state, at which ports; the workflows' side
    plane.py           the data plane behind one small interface, with two drivers:
    embedded.py          the gateway of this project (`orchestrator gateway`)
    caddy.py             Caddy, through its admin API

The steps and workflows themselves are in `workflows/proxies/`, the triggers in `workflows/triggers/proxies.yaml`.
"""

"""The life cycle of reverse proxies: what `proxy_created`, `certificate_ready`, `proxy_updated`, `route_changed` and
`proxy_deleted` do. The triggers are in `workflows/triggers/proxies.yaml`.

    PENDING → CREATING → ACTIVE → UPDATING → ACTIVE          DELETING → DELETED          FAILED

Events of one hostname take effect one after another, in their order: instances of one hostname run one at a time.
"""

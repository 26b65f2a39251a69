"""The functions host: what `func start` does, for machines without Azure Functions Core Tools.

It imports the app, reads the app's own decorators, listens to timers, blobs, queues and HTTP with the
semantics that Azure documents, and hands values over through the converters of `azure.functions`.
Start it with `python -m localcloud.host --settings local.settings.json --app function_app.py --port 7071`.

Where things are:

    config.py    local.settings.json, host.json, and which account a connection name means
    app.py       the app module -> its functions, bindings and resolved settings
    bindings.py  what the host knows of an event -> the argument that the worker would give
    runner.py    one invocation: context, thread or coroutine, log lines, outcome
    ncrontab.py  schedules; timers.py fires them
    queues.py    queue listener: leases, retries, poison
    blobs.py     container scan and Event Grid events -> blob trigger messages -> invocations
    store.py     receipts and schedule status in the container `azure-webjobs-hosts`, as in Azure
    routes.py    route templates; keys.py access keys; server.py the HTTP side: functions, admin, webhooks
    service.py   all of it together, started and stopped
"""

LISTENS = "Functions host listens on"
"""What its log says once it takes requests."""

"""A model behind OpenAI's API, for `finetale serve`. Needs the extra `serve`.

    openapi         what the routes take and give, described
wire            bodies to requests and back, pure functions
completion      a request → jobs → choices
engines         what computes tokens, and which of them serves a model
worker          the thread that keeps an engine busy; queue, turns, cancelling
guard           keys, hosts, sizes
app             the routes
service         models and engines → a server that runs until it is told to stop
"""

from __future__ import annotations

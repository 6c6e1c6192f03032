"""A model behind OpenAI's API, for `finetale serve`. Needs the extra `serve`.

    openapi         what the routes take and give, described
wire            bodies to requests and back, pure functions
completion      a request → jobs → choices
engines         what computes tokens, and which of them serves a model
worker          the thread that keeps an engine busy; queue, turns, cancelling
guard           keys, hosts, sizes
answer          pieces → a body or a stream
app             the routes
vllm            vLLM behind these limits
source          where a model comes from → an engine that serves it
service         a server that runs until it is told to stop; logs is what it tells
"""

from __future__ import annotations

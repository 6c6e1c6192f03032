"""OpenAI-compatible API for models, used by `finetale serve`. Needs the extra `serve`.

service         life of a service: start, reload, shutdown
app             routes
access          API key, hosts, origins and sizes
listening       socket of the service: an address or a Unix socket
connections     limits on connections
wire            request and response bodies; messages are those of conversations; openapi describes them
extensions      parameters of vLLM; token_routes are its routes for tokens
tools           tool calls: their notation in chat templates, and their place in responses
forms           the form that a request asks for: JSON, a pattern, a choice, a grammar
grammars        structured output: a form → the tokens that may come next; token_bytes are their bytes
ollama          Ollama's API in terms of OpenAI's; ollama_routes are its routes
completion      a request → jobs → choices
answer          pieces of choices → a body or a stream
worker          thread that runs an engine; turns is its queue
engines         engines that generate tokens, and the selection of one
model_spec      specification of a model → the model with its worker; adapter_spec is that of an adapter
vllm            vLLM as an engine
meters, logs    metrics and log
"""

from __future__ import annotations

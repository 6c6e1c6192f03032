/* Requests to the service that the page came from. Failures become sentences. */

const MAX_RETRIES = 6;
let apiKey = ""; // in memory only
let keyAsked = null;

/** What went wrong, as a key of the words. */
class Failure extends Error {
  constructor(key, ...values) {
    super(key);
    this.key = key;
    this.values = values;
  }

  get sentence() { return say(this.key, ...this.values); }

  /** Return the failure of a response. */
  static async of(answer) {
    let message = `${answer.status} ${answer.statusText}`, code = "", wrong = "";
    try {
      const {error} = await answer.json();
      ({message, code, param: wrong} = error);
    } catch { /* a proxy answers with a page of its own */ }
    const key = {401: "no-key", 429: "busy", 502: "lost", 503: "not-ready", 504: "too-slow"}[answer.status];
    const found = key ? new Failure(key) : new Failure("server-says", message);
    found.status = answer.status;
    found.code = code;
    found.wrong = wrong;
    found.after = Number(answer.headers.get("Retry-After")) || 1;
    return found;
  }
}

/** Send a request; return the response. With `asks`, ask for a key if the service wants one. */
async function ask(path, {body, signal, asks = true} = {}) {
  for (;;) {
    const headers = apiKey ? {Authorization: `Bearer ${apiKey}`} : {};
    if (body) headers["Content-Type"] = "application/json";
    let answer;
    try {
      answer = await fetch(path, {method: body ? "POST" : "GET", headers, signal, cache: "no-store",
        body: body && JSON.stringify(body)});
    } catch (error) {
      throw error.name === "AbortError" ? error : new Failure("lost");
    }
    if (answer.ok) return answer;
    const failure = await Failure.of(answer);
    if (failure.status !== 401 || !asks || !await askKey()) throw failure;
  }
}

/** Send a request; while the queue is full, try again. `onWait` gets the seconds to the next try. */
async function askPatiently(path, options, onWait) {
  for (let tries = 1; ; tries++) {
    try {
      return await ask(path, options);
    } catch (failure) {
      if (failure.status !== 429 || tries > MAX_RETRIES) throw failure;
      const seconds = Math.max(failure.after, Math.min(2 ** tries, 20));
      onWait(seconds);
      await pause(seconds, options.signal);
    }
  }
}

/** Ask the reader for the key; return whether one was given. */
function askKey() {
  keyAsked ??= new Promise(resolve => {
    const dialog = byId("ask-key"), field = byId("key");
    field.value = "";
    dialog.returnValue = "";
    dialog.showModal();
    dialog.addEventListener("close", () => {
      if (dialog.returnValue === "use") apiKey = field.value.trim();
      field.value = "";
      keyAsked = null;
      resolve(dialog.returnValue === "use");
    }, {once: true});
  });
  return keyAsked;
}

/** Yield the events of a stream. */
async function* events(answer, signal) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      throw signal.aborted ? signal.reason : new Failure("cut");
    }
    if (part.done) throw new Failure("cut"); // a whole stream ends with [DONE]
    const blocks = (pending + part.value).split("\n\n");
    pending = blocks.pop();
    for (const block of blocks) {
      const data = block.trimStart().replace(/^data: /, "");
      if (data === "[DONE]") return;
      if (!data) continue;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Failure("server-says", chunk.error.message);
      yield chunk;
    }
  }
}

/** Return the models by name, once the service has loaded them. */
async function loadModels() {
  for (;;) {
    const state = await fetch("ready", {cache: "no-store"}).then(answer => answer.json(), () => ({status: "lost"}));
    if (state.status === "lost") throw new Failure("lost");
    if (state.status !== "loading") break;
    announce(say("loading"));
    await pause(1);
  }
  const {data} = await (await ask("v1/models")).json();
  announce("");
  return Object.fromEntries(data.map(model => [model.id, model]));
}

/** Return the token ids of a prompt or a conversation. */
async function tokenize(body, options) {
  return (await (await ask("tokenize", {...options, body})).json()).tokens;
}

/** Start a text that the service is to write. */
const newTake = (model, seed) =>
  ({model, seed, text: "", state: "waiting", reason: "", tokens: null, seconds: null, error: ""});

/** Let the service write the takes of one request. `prepare` returns its path and body. */
async function write({takes, prepare}, signal, onChange, onWait) {
  const began = performance.now();
  const end = (take, state) => {
    take.state = state;
    take.seconds = (performance.now() - began) / 1000;
  };
  try {
    const {path, body} = await prepare();
    const whole = {...body, n: takes.length, stream: true, stream_options: {include_usage: true}};
    const answer = await askPatiently(path, {body: whole, signal}, onWait);
    for await (const chunk of events(answer, signal)) {
      if (chunk.usage && takes.length === 1) takes[0].tokens = chunk.usage.completion_tokens;
      for (const choice of chunk.choices) {
        const take = takes[choice.index];
        take.text += choice.text ?? choice.delta?.content ?? "";
        take.state = "writing";
        take.reason = choice.finish_reason ?? "";
        if (choice.finish_reason) end(take, "done");
      }
      onChange();
    }
  } catch (error) {
    const stopped = signal.aborted;
    for (const take of takes.filter(each => each.state !== "done")) {
      end(take, stopped ? "stopped" : "failed");
      if (!stopped) take.error = error instanceof Failure ? error.sentence : String(error);
    }
    if (!stopped) throw error instanceof Failure ? error : new Failure("server-says", String(error));
  } finally {
    onChange();
  }
}
